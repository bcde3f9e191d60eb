"""`cxr-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.runtime.choices import ENGINES
from cxr_edge.runtime.cli.console import emit, output_format
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, ImageError, UsageError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.benchmarks.regression import Check


@click.command(context_settings={"show_default": True})
@click.argument("images", type=click.Path(path_type=Path), metavar="IMAGE|DIR")
@click.option(
    "-m", "--model", "bundle", type=click.Path(path_type=Path), help="Bundle folder; the packaged model by default."
)
@click.option("--engine", type=click.Choice(("all", *ENGINES)), default="all")
@click.option("--threads", type=click.IntRange(1), default=1, help="CPU threads of the engines.")
@click.option(
    "--samples",
    type=click.IntRange(20),
    default=130,
    help="Samples of each file. Each percentile needs a number of them: p50 20, p90 64, p95 130, p99 662.",
)
@click.option("--cold/--no-cold", default=True, help="Measure cold start and peak memory.")
@click.option("--heatmap/--no-heatmap", default=True, help="Measure the cost of the heatmap.")
@click.option(
    "--keras", "run", type=click.Path(path_type=Path), metavar="RUN", help="Also time Keras with GradientTape."
)
@click.option("--python", type=click.Path(), help="Python interpreter for cold starts.")
@click.option(
    "--baseline",
    "baseline_file",
    type=click.Path(path_type=Path),
    metavar="BENCH.json",
    help="Record of an earlier bench -o: fail if a file is slower now. Its bundle runs again, in turns with yours, if "
    "it is still where it was.",
)
@click.option(
    "--against",
    metavar="OTHER",
    help="Only compare, in turns, with a bundle, or with a checkout or git revision of this project: fail if a file is "
    "slower.",
)
@click.option("--peers", is_flag=True, help="Only compare with what others would run; needs --keras.")
@click.option(
    "--profile",
    "profile_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Only profile: time by operator, with pictures in this folder.",
)
@click.option(
    "--scale",
    "scale_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Only measure how times grow with images, threads, batch, original, input and width; picture in this folder.",
)
@click.option("--load", is_flag=True, help="Only run MLPerf's scenarios: single stream, offline, server.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=60, help="Shortest duration of a scenario; the rules demand 600."
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(1, min_open=True),
    show_default="1.05 in turns, 1.25 against absolute figures",
    help="Fail if a time is certainly more than this many times the other one.",
)
@click.option(
    "--budget",
    "budget_file",
    type=click.Path(path_type=Path),
    metavar="BUDGET.toml",
    help="Limits on time, cold start, memory and size.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@output_format("table", "json")
def bench(
    images: Path,
    bundle: Path | None,
    baseline_file: Path | None,
    against: str | None,
    peers: bool,
    profile_folder: Path | None,
    scale_folder: Path | None,
    load: bool,
    seconds: float,
    max_slowdown: float | None,
    budget_file: Path | None,
    output: Path | None,
    format: str,
    **options: Any,
) -> None:
    """Measure each file of a bundle on radiographs: time of each stage, cold start, memory, size.

    All files take turns on the same images in one process, so that their ratios are valid on a busy machine. With
    --baseline, --against or --budget, exit 1 if a file exceeds a limit or was not measured.

    \b
      cxr-edge bench folder -m bundle
      cxr-edge bench folder -m bundle --keras runs/first -o bench.json
      cxr-edge bench folder -m bundle --baseline bench.json --max-slowdown 1.5
      cxr-edge bench folder -m bundle --budget budget.toml
      cxr-edge bench folder -m bundle --against other-bundle
      cxr-edge bench folder --against main
      cxr-edge bench folder -m bundle --peers --keras runs/first
      cxr-edge bench folder -m bundle --profile profile

    \b
    An example of budget.toml; the limits of a file override those of all:
      [all]
      total_p95_ms = 40
      cold_start_s = 1.5
      ["model.int8.tflite"]
      total_p50_ms = 12
      peak_rss_mb = 120
      size_mb = 3
    """
    from cxr_edge.common.backend import import_keras_quietly
    from cxr_edge.runtime.imaging.folders import find_images
    from cxr_edge.runtime.predictor import packaged_model

    found = find_images(images) if images.is_dir() else [images]
    if not found:
        raise ImageError(f"{images}: no image files in this folder")
    if options["run"] and not peers:
        import_keras_quietly()
    from cxr_edge.benchmarks import modes
    from cxr_edge.benchmarks.checked import compared, measured
    from cxr_edge.benchmarks.suite import Options
    from cxr_edge.common.progress import stages

    chosen, folder = Options(**options), bundle or packaged_model()
    wanted = {"--against": against, "--peers": peers, "--profile": profile_folder, "--load": load}
    wanted["--scale"] = scale_folder
    if len(named := [name for name, value in wanted.items() if value]) > 1:
        raise UsageError(f"found {' and '.join(named)}, expected at most one of them; run `bench` once for each")
    checks: list[Check] = []
    with stages() as progress:
        if against:
            record, checks = compared(against, bundle, found, chosen, max_slowdown, progress)
        elif peers:
            record = modes.peers(folder, found, chosen, progress)
        elif profile_folder:
            record = modes.profile(folder, found, chosen, profile_folder, progress)
        elif scale_folder:
            record = modes.scale(folder, found, chosen, scale_folder, progress)
        elif load:
            record = modes.load(folder, found, chosen, seconds, progress)
        else:
            record, checks = measured(bundle, found, chosen, baseline_file, max_slowdown, budget_file, progress)
    _show(record, checks, output, format)


def _show(record: dict[str, Any], checks: list[Check], output: Path | None, format: str) -> None:
    """Write and print a record; exit 1 if a check failed."""
    import json
    from dataclasses import asdict

    from cxr_edge.benchmarks.reports.modes import print_mode
    from cxr_edge.benchmarks.reports.table import print_benchmark, print_checks
    from cxr_edge.common.progress import table_console

    record["checks"] = [asdict(check) for check in checks]
    if output:
        write_atomically(output, json.dumps(record, indent=2) + "\n")
    console = table_console(stderr=format == "json")
    if format == "json":
        emit(record, format)
    elif "kind" not in record:
        print_benchmark(record, console)
    elif record["kind"] != "against":
        print_mode(record, console)
    print_checks(checks, console)
    if not all(check.passed for check in checks):
        click.get_current_context().exit(EXIT_CHECK_FAILED)

"""`cxr-edge bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.runtime.choices import ENGINE_NAMES
from cxr_edge.runtime.cli.console import emit, output_format
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, ImageError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.benchmarks.regression import Check, Timings


@click.command()
@click.argument("images", type=click.Path(path_type=Path), metavar="IMAGE|DIR")
@click.option("-m", "--model", "bundle", type=click.Path(path_type=Path), help="Bundle folder.")
@click.option("--engine", type=click.Choice(("all", *ENGINE_NAMES)), default="all", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of the engines.")
@click.option(
    "--samples",
    type=click.IntRange(20),
    default=130,
    show_default=True,
    help="Of each file. A percentile is printed when it has enough: p50 20, p90 64, p95 130, p99 662.",
)
@click.option("--cold/--no-cold", default=True, show_default=True, help="Cold start and memory, in fresh processes.")
@click.option("--heatmap/--no-heatmap", default=True, show_default=True, help="Cost of the in-graph heatmap.")
@click.option(
    "--keras", "run", type=click.Path(path_type=Path), metavar="RUN", help="Also time Keras with GradientTape."
)
@click.option("--python", type=click.Path(), help="Interpreter for cold starts, as of a bare environment.")
@click.option(
    "--baseline",
    "baseline_file",
    type=click.Path(path_type=Path),
    metavar="BENCH.json",
    help="Earlier -o of this bench on such a machine: fail if a file of it is slower now.",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(1),
    default=1.25,
    show_default=True,
    help="Against --baseline: fail where a time, noise aside, is more than this many times the earlier.",
)
@click.option(
    "--budget",
    "budget_file",
    type=click.Path(path_type=Path),
    metavar="BUDGET.toml",
    help="Limits on time, cold start, memory, size.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON, raw samples included, here too.")
@output_format("table", "json")
def bench(
    images: Path,
    bundle: Path | None,
    engine: str,
    threads: int,
    samples: int,
    cold: bool,
    heatmap: bool,
    run: Path | None,
    python: str | None,
    baseline_file: Path | None,
    max_slowdown: float,
    budget_file: Path | None,
    output: Path | None,
    format: str,
) -> None:
    """Time each file of a bundle on radiographs: stage by stage, cold start, memory, size.

    All files take turns on the same images in one process, so that their ratios hold on a noisy machine.
    With --baseline or --budget, exit 1 if a file is slower or larger than it may be, or was not measured.

    \b
      cxr-edge bench folder -m bundle
      cxr-edge bench folder -m bundle --keras runs/first -o bench.json
      cxr-edge bench folder -m bundle --baseline bench.json --max-slowdown 1.5
      cxr-edge bench folder -m bundle --budget budget.toml

    \b
    A budget.toml; the limits of a file go over those of all:
      [all]
      total_p95_ms = 40
      cold_start_s = 1.5
      ["model.int8.tflite"]
      total_p50_ms = 12
      peak_rss_mb = 120
      size_mb = 3
    """
    import json
    from dataclasses import asdict

    from cxr_edge.common.backend import import_keras_quietly
    from cxr_edge.runtime.imaging.folders import find_images
    from cxr_edge.runtime.predictor import packaged_model

    found = find_images(images) if images.is_dir() else [images]
    if not found:
        raise ImageError(f"{images}: no image files in this folder")
    if run:
        import_keras_quietly()
    from cxr_edge.benchmarks.regression import load_baseline, load_budget
    from cxr_edge.benchmarks.report import print_benchmark, print_checks
    from cxr_edge.benchmarks.suite import Options, benchmark
    from cxr_edge.common.progress import stages, table_console

    baseline = load_baseline(baseline_file) if baseline_file else None
    budget = load_budget(budget_file) if budget_file else {}
    options = Options(engine, threads, samples, cold, heatmap, run, python)
    with stages() as progress:
        record = benchmark(bundle or packaged_model(), found, options, progress)
    checks = _check(record, baseline, max_slowdown, budget)
    record["checks"] = [asdict(check) for check in checks]
    if output:
        write_atomically(output, json.dumps(record, indent=2) + "\n")
    console = table_console(stderr=format == "json")
    if format == "json":
        emit(record, format)
    else:
        print_benchmark(record, console)
    print_checks(checks, console)
    if not all(check.passed for check in checks):
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _check(
    record: Mapping[str, Any],
    baseline: Timings | None,
    max_slowdown: float,
    budget: Mapping[str, Mapping[str, float]],
) -> list[Check]:
    from cxr_edge.benchmarks.regression import Timings, check_budget, check_slowdown, differences

    checks = check_budget(record, budget)
    if baseline:
        now = Timings.of(record)
        for difference in differences(now, baseline):
            click.echo(f"warning: times may differ for another reason than the bundle; {difference}", err=True)
        checks += check_slowdown(now, baseline, max_slowdown)
    return checks

"""`cxr-edge bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cxr_edge.runtime.console import emit, output_format
from cxr_edge.runtime.engines import ENGINES
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.image import find_images
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.runtime.quiet import import_keras_quietly


@click.command()
@click.argument("images", type=click.Path(path_type=Path), metavar="IMAGE|DIR")
@click.option("-m", "--model", "bundle", type=click.Path(path_type=Path), help="Bundle folder.")
@click.option("--engine", type=click.Choice(("all", *ENGINES)), default="all", show_default=True)
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
    output: Path | None,
    format: str,
) -> None:
    """Time each file of a bundle on radiographs: stage by stage, cold start, memory, size.

    All files take turns on the same images in one process, so that their ratios hold on a noisy machine.

    \b
      cxr-edge bench folder -m bundle
      cxr-edge bench folder -m bundle --keras runs/first -o bench.json
    """
    found = find_images(images) if images.is_dir() else [images]
    if not found:
        raise ImageError(f"{images}: no image files in this folder")
    if run:
        import_keras_quietly()
    from rich.console import Console

    from cxr_edge.benchmarks.report import print_benchmark
    from cxr_edge.benchmarks.suite import Options, benchmark
    from cxr_edge.export.progress import stages

    options = Options(engine, threads, samples, cold, heatmap, run, python)
    with stages() as progress:
        record = benchmark(bundle or packaged_model(), found, options, progress)
    if output:
        write_atomically(output, json.dumps(record, indent=2) + "\n")
    if format == "json":
        emit(record, format)
    else:
        console = Console()
        print_benchmark(record, console if console.is_terminal else Console(width=200))

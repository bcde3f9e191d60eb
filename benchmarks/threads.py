"""Compare the throughput of several threads that share one predictor with that of one thread.

    python benchmarks/threads.py radiographs --engine litert --precision int8

The engine uses one thread per prediction. One thread and several threads take turns on the same files in one process.
The output gives the ratio of the throughputs, and its quartiles over the rounds.
"""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from cxr_edge.runtime import Predictor, load
from cxr_edge.runtime.imaging.folders import find_images


@click.command()
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("-m", "--model", "bundle", type=click.Path(), help="Bundle; by default the packaged model.")
@click.option("--engine", default="litert", show_default=True, help="Engine: onnx or litert.")
@click.option("--precision", default="auto", show_default=True, help="Precision: fp32, fp16 or int8.")
@click.option("--threads", default=2, show_default=True, help="Number of threads that call the predictor.")
@click.option("--rounds", default=15, show_default=True, help="Number of measurements.")
@click.option("--count", default=200, show_default=True, help="Largest number of files.")
def main(images: Path, bundle: str | None, engine: str, precision: str, threads: int, rounds: int, count: int) -> None:
    """Compare the throughput of several threads with that of one thread on the radiographs in IMAGES."""
    files = [path.read_bytes() for path in find_images(images)[:count]]
    predictor = load(bundle, engine, precision, threads=1)
    throughput(predictor, files, threads)
    rates = np.array([[throughput(predictor, files, n) for n in (1, threads)] for _ in range(rounds)])
    one, several = np.median(rates, axis=0)
    low, middle, high = np.quantile(rates[:, 1] / rates[:, 0], (0.25, 0.5, 0.75))
    click.echo(
        f"{predictor.file.path}, {len(files)} files, {platform.machine()}: {one:.0f} images per second with 1 thread, "
        f"{several:.0f} with {threads}; ratio {middle:.2f} ({low:.2f} to {high:.2f})"
    )


def throughput(predictor: Predictor, files: list[bytes], threads: int) -> float:
    """Predictions per second."""
    with ThreadPoolExecutor(threads) as pool:
        start = perf_counter()
        for _ in pool.map(predictor.predict, files):
            pass
        return len(files) / (perf_counter() - start)


if __name__ == "__main__":
    main()

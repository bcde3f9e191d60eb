"""Compare the speed of the runtime in this checkout with that in another checkout, on the same files.

    git worktree add ../before v0.1.0
    python benchmarks/against.py ../before radiographs --precision int8

Each checkout runs in its own process. The two take turns, file by file, so that the load of the machine affects both
alike. The output gives the medians in milliseconds with reading of the file, their ratio with a 95 % bootstrap
interval over the files, and the difference of the probabilities.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from cxr_edge.runtime.imaging.folders import find_images

ROOTS = ("runtime", "common", "train", "export", "benchmarks")
WORKER = """
import json, sys
from time import perf_counter
from cxr_edge.runtime import load
predictor = load(sys.argv[1] or None, sys.argv[2], sys.argv[3], threads=int(sys.argv[4]))
for line in sys.stdin:
    start = perf_counter()
    prediction = predictor.predict(line.rstrip("\\n"))
    seconds = perf_counter() - start
    print(json.dumps([1e3 * seconds, prediction.probability, prediction.label]), flush=True)
"""


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("-m", "--model", default="", help="Bundle for both checkouts; by default the packaged model of each.")
@click.option("--engine", default="litert", show_default=True, help="Engine: onnx or litert.")
@click.option("--precision", default="auto", show_default=True, help="Precision: fp32, fp16 or int8.")
@click.option("--threads", default=1, show_default=True, help="Threads of the engine.")
@click.option("--rounds", default=10, show_default=True, help="Number of predictions for each file.")
def main(other: Path, images: Path, rounds: int, **options: Any) -> None:
    """Compare the speed of this checkout with that of the checkout in folder OTHER on the radiographs in IMAGES."""
    here = Path(__file__).resolve().parents[1]
    files = [path.resolve() for path in find_images(images)]
    sides = [start(checkout, **options) for checkout in (here, other.resolve())]
    random = np.random.default_rng(0)
    times = np.empty((rounds + 1, len(files), 2))
    probabilities = np.empty((len(files), 2))
    labels: list[list[str]] = [["", ""] for _ in files]
    with click.progressbar(range(rounds + 1), file=sys.stderr) as bar:
        for round_ in bar:
            for row in random.permutation(len(files)):
                for side in random.permutation(2):
                    times[round_, row, side], probabilities[row, side], labels[row][side] = ask(sides[side], files[row])
    report(times[1:], probabilities, sum(a != b for a, b in labels))  # the first round warms up


def start(checkout: Path, model: str, engine: str, precision: str, threads: int) -> subprocess.Popen[str]:
    """Start a process that runs the code of a checkout, not the installed package."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(checkout / root) for root in ROOTS)}
    command = [sys.executable, "-c", WORKER, model, engine, precision, str(threads)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(side: subprocess.Popen[str], file: Path) -> tuple[float, float, str]:
    """Let a process predict a file; return milliseconds, probability and label."""
    assert side.stdin is not None and side.stdout is not None
    side.stdin.write(f"{file}\n")
    side.stdin.flush()
    milliseconds, probability, label = json.loads(side.stdout.readline())
    return milliseconds, probability, label


def report(times: np.ndarray, probabilities: np.ndarray, decisions: int) -> None:
    """Print the results; `times` is (rounds, files, 2) in milliseconds, this checkout first."""
    medians = np.median(times, axis=0)
    random = np.random.default_rng(0)
    samples = random.integers(0, len(medians), (2000, len(medians)))
    ratios = np.median(medians[samples, 0], axis=1) / np.median(medians[samples, 1], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    here, there = np.median(medians, axis=0)
    difference = np.abs(probabilities[:, 0] - probabilities[:, 1])
    click.echo(f"{len(medians)} files, {len(times)} rounds: {here:.2f} ms here, {there:.2f} ms in the other checkout")
    click.echo(f"ratio {here / there:.3f} [{low:.3f}, {high:.3f}]")
    click.echo(f"largest difference of probabilities {difference.max():.4f}; {decisions} decisions differ")


if __name__ == "__main__":
    main()

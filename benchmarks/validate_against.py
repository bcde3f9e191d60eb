"""Validate `bench --against`: it must not alarm without a reason, and must catch a slow-down.

    python benchmarks/validate_against.py radiographs --repeats 20 --slowdown 1.10 --log validation.jsonl

Two comparisons take turns: this checkout with itself (A/A), and a copy that is slower on purpose with this checkout.
In every second pair of them another process keeps all cores busy. Each result is one line of the log. An interrupted
validation continues with the same log.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import cpu_count
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from cxr_edge.benchmarks.compare.against import against, pairs
from cxr_edge.benchmarks.compare.sides import Side
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.predictor import packaged_model

HERE = Path(__file__).resolve().parents[1]
#: The method that is slowed down: it waits, busily, until its time has grown by the factor.
FAST = "        return self._predict(image, name)[1]\n"
SLOW = """\
        start = perf_counter()
        found = self._predict(image, name)[1]
        end = start + {factor} * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return found
"""


@click.command()
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("--engine", default="litert", show_default=True, help="Engine: onnx or litert.")
@click.option("--repeats", default=20, show_default=True, help="Number of comparisons of each kind.")
@click.option("--slowdown", default=1.10, show_default=True, help="Factor of the copy that is slower.")
@click.option("--limit", default=1.05, show_default=True, help="Limit of the verdict.")
@click.option("--log", type=click.Path(path_type=Path), default="validation.jsonl", show_default=True)
def main(images: Path, engine: str, repeats: int, slowdown: float, limit: float, log: Path) -> None:
    """Run both kinds of comparisons on the radiographs in IMAGES and count the verdicts."""
    files = find_images(images)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        fast, slow = Side("fast", packaged_model(), HERE), slowed(Path(folder), slowdown)
        for repeat in range(len(done) // 2, repeats):
            for kind, here in (("same", fast), ("slower", slow)):
                with other_work(repeat % 2 == 1):
                    row = compare(here, fast, engine, files, limit)
                done.append({"kind": kind, "other_work": repeat % 2 == 1, **row})
                click.echo(done[-1], err=True)
                with log.open("a") as lines:
                    lines.write(json.dumps(done[-1]) + "\n")
    for kind in ("same", "slower"):
        verdicts = [row["verdict"] for row in done if row["kind"] == kind]
        click.echo(f"{kind}: " + ", ".join(f"{v} {verdicts.count(v)}" for v in sorted(set(verdicts))))


def compare(here: Side, there: Side, engine: str, images: list[Path], limit: float) -> dict[str, Any]:
    """One comparison of one file."""
    start = perf_counter()
    found = against(here, there, pairs(here, there, engine)[0][:1], images, 1, limit, lambda *_: None)[0]
    facts = {"ratio": found.wall.ratio, "low": found.wall.low, "high": found.wall.high, "cpu": found.cpu.ratio}
    facts |= {"control": found.control.ratio, "drift": found.drift, "blocks": found.blocks}
    return {"verdict": found.verdict, **facts, "seconds": perf_counter() - start}


def slowed(folder: Path, factor: float) -> Side:
    """Copy the runtime of this checkout, and slow its predictions down."""
    shutil.copytree(HERE / "runtime", folder / "runtime")
    path = folder / "runtime" / "cxr_edge" / "runtime" / "predictor.py"
    source = path.read_text()
    assert source.count(FAST) == 1, "Predictor.predict has changed; adapt this program"
    path.write_text(source.replace(FAST, SLOW.format(factor=factor)))
    return Side("slower", packaged_model(), folder)


@contextmanager
def other_work(wanted: bool) -> Iterator[None]:
    """Keep all cores busy with other processes meanwhile."""
    workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(cpu_count() or 1) if wanted]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _spin() -> None:
    import numpy as np

    matrix = np.random.default_rng(0).random((300, 300))
    while True:
        np.sort(matrix @ matrix, axis=0)


if __name__ == "__main__":
    main()

"""A large folder on a local Ray: rate, memory of driver and workers, equality with `predict`, and a second call.

::

    python -m cxr_edge.benchmarks.archive.load chest_xray --inputs 100000 --work build/load

The radiographs are repeated as hard links, so that each input has a URI of its own and takes no space.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click

#: Seconds between two measurements of memory.
EVERY = 15.0


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--inputs", default=100_000, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/load"), show_default=True)
def main(source: Path, inputs: int, workers: int, work: Path) -> None:
    """Print one JSON line for each measurement."""
    folder, out = work / "archive", work / "out"
    _repeat(source, folder, inputs)
    for found in _score(folder, out, workers):
        click.echo(json.dumps(found))
    start = monotonic()
    for _ in _score(folder, out, workers):
        pass
    click.echo(json.dumps({"second_call_s": round(monotonic() - start, 2)}))
    click.echo(json.dumps(_compare(out, source)))


def _repeat(source: Path, folder: Path, inputs: int) -> None:
    """Make hard links to the images, each in a folder of 1,000."""
    from cxr_edge.runtime.imaging.folders import find_images

    if folder.is_dir():
        return
    for number, image in enumerate(islice(cycle(find_images(source)), inputs)):
        place = folder / f"{number // 1000:06}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(image, place / f"{number:09}-{image.name}")


def _score(folder: Path, out: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Run the command; yield its memory and the number of rows from time to time, and its rate at the end."""
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "score", str(folder), "-o", str(out)]
    start = monotonic()
    with (folder.parent / "score.log").open("ab") as log:
        driver = subprocess.Popen([*command, "--workers", str(workers)], stdout=log, stderr=log)
    while driver.poll() is None:
        sleep(min(EVERY, 0.2 if monotonic() - start < 5 else EVERY))
        if monotonic() - start > EVERY:
            yield {"seconds": round(monotonic() - start), "files": len(list(out.glob("rows/*"))), **_memory(driver.pid)}
    yield {"code": driver.returncode, "seconds": round(monotonic() - start, 1)}


def _memory(driver: int) -> dict[str, Any]:
    """Resident memory (MB) of the driver, of each worker, and of all processes of Ray."""
    import psutil

    try:
        processes = psutil.Process(driver).children(recursive=True)
        own = psutil.Process(driver).memory_info().rss
        found = [(" ".join(p.cmdline()), p.memory_info().rss) for p in processes]
    except psutil.Error:
        return {}
    workers = sorted(round(rss / 1e6) for name, rss in found if "MapWorker" in name)
    return {"driver_mb": round(own / 1e6), "workers_mb": workers, "ray_mb": round(sum(rss for _, rss in found) / 1e6)}


def _compare(out: Path, source: Path) -> dict[str, Any]:
    """Compare each row with the answer for the radiograph of the same content."""
    import pyarrow.parquet as pq

    from cxr_edge.runtime import load
    from cxr_edge.runtime.bundles.bundle import sha256
    from cxr_edge.runtime.imaging.folders import find_images

    columns = ["uri", "sha256", "label", "probability", "logit", "novelty", "in_distribution", "heatmap"]
    table = pq.read_table(out / "rows", columns=columns)
    images = find_images(source)
    answers = {}
    with load(threads=2) as predictor:
        for image, each in zip(images, predictor.predict_many(map(str, images)), strict=True):
            assert not isinstance(each, Exception)
            answers[sha256(image)] = (*(getattr(each, c) for c in columns[2:-1]), each.heatmap.tobytes())
    heatmaps = table["heatmap"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    rows = zip(*(table[c].to_pylist() for c in columns[1:-1]), heatmaps, strict=True)
    different = sum(answers[sha] != (*values, heatmap.tobytes()) for sha, *values, heatmap in rows)
    return {"rows": table.num_rows, "inputs": len(set(table["uri"].to_pylist())), "rows_that_differ": different}


if __name__ == "__main__":
    main()

"""Many predictions from many threads: every answer equals the serial one bit by bit, and memory stays flat.

    python tests/soak/predictions.py                                # 50,000 predictions from 8 threads, LiteRT
    python tests/soak/predictions.py --engine onnx --threads 8 --count 8000

Exit code 1 if an answer differs or memory grows by more than the limit. `tests/soak/test_soak.py` runs it briefly.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import click
import cv2
import numpy as np

from cxr_edge.runtime import Prediction, Predictor, load

#: Different images. Their answers are known before the threads start.
IMAGES = 64
#: Predictions before memory is first measured: allocators and interpreters take what they need.
WARM_UP = 2000
MAX_GROWTH_MB = 5.0
#: Parameter of glibc's `mallopt`, from malloc.h: freed bytes at the end of an arena that it keeps.
M_TRIM_THRESHOLD = -1


@click.command()
@click.option("--count", default=50_000, show_default=True, help="Predictions in all.")
@click.option("--threads", default=8, show_default=True)
@click.option("--engine", type=click.Choice(("litert", "onnx")), default="litert", show_default=True)
@click.option("-m", "--model", "bundle", type=click.Path(), help="Bundle; the packaged model by default.")
def main(count: int, threads: int, engine: str, bundle: str | None) -> None:
    """Decide COUNT times on encoded images from THREADS threads, and compare with a single thread."""
    return_freed_memory()
    images = encoded_images(IMAGES)
    with load(bundle, engine, threads=1) as predictor, ThreadPoolExecutor(threads) as pool:
        serial = [bits(predictor.predict(image)) for image in images]
        decide_many(predictor, images, serial, WARM_UP, pool)
        before, start = used_mb(), perf_counter()
        wrong, done = 0, 0
        with click.progressbar(length=count, file=sys.stderr) as bar:
            while done < count:
                share = min(2000, count - done)
                wrong += decide_many(predictor, images, serial, share, pool)
                done += share
                bar.update(share)
        seconds, growth = perf_counter() - start, used_mb() - before
    click.echo(
        f"{engine}: {count} predictions from {threads} threads, {count / seconds:.0f} each second; "
        f"{wrong} answers differ from the serial run; memory {before:.1f} MB, grown by {growth:+.1f} MB"
    )
    sys.exit(int(wrong > 0 or growth > MAX_GROWTH_MB))


def decide_many(
    predictor: Predictor, images: Sequence[bytes], serial: Sequence[object], count: int, pool: ThreadPoolExecutor
) -> int:
    """Predict `count` images in turn from the threads of a pool; -> how many answers differ from the serial run."""
    rows = [i % len(images) for i in range(count)]
    return sum(pool.map(lambda row: bits(predictor.predict(images[row])) != serial[row], rows))


def encoded_images(count: int) -> list[bytes]:
    """JPEG, PNG, BMP and TIFF files of random blobs, of different sizes."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = random.integers(0, 256, (7, 7), dtype=np.uint8)
        side = int(random.integers(200, 700))
        suffix = (".jpg", ".png", ".bmp", ".tiff")[number % 4]
        files.append(
            cv2.imencode(suffix, cv2.resize(coarse, (side, side + 20), interpolation=cv2.INTER_CUBIC))[1].tobytes()
        )
    return files


def bits(prediction: Prediction) -> tuple[object, ...]:
    """All that a prediction says, to be compared exactly."""
    return prediction.logit, prediction.probability, prediction.novelty, prediction.heatmap.tobytes()


def return_freed_memory() -> None:
    """Let every arena of glibc return what it no longer needs, from the first thread on.

    glibc has an arena for each thread, which by default keeps up to 64 MB of freed memory. Resident memory then rises
    and falls by 10 MB in 1,000 predictions, and would hide a leak or look like one. A leak is never freed.
    """
    c_library("mallopt", M_TRIM_THRESHOLD, 128 << 10)


def used_mb() -> float:
    """Resident memory of this process (MB), without garbage and freed memory."""
    gc.collect()
    c_library("malloc_trim", 0)
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def c_library(function: str, *arguments: int) -> None:
    """Call a function of the C library, if it has it: glibc has these, others do not."""
    if call := getattr(ctypes.CDLL(None), function, None):
        call(*arguments)


if __name__ == "__main__":
    main()

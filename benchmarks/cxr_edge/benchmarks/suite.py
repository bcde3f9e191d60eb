"""The whole benchmark of a bundle, as one record."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from os import cpu_count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from cxr_edge.benchmarks.heatmap_cost import heatmap_cost, without_heatmap
from cxr_edge.benchmarks.latency import STAGES, WARM_UP, Latency, measure, open_files, sample
from cxr_edge.benchmarks.process import cold_start
from cxr_edge.benchmarks.statistics import median_ratio, percentiles
from cxr_edge.common.dataset import LabelledImage, read_pixels
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.predictor import Predictor

SCHEMA_VERSION = 1
#: Of Keras' Grad-CAM, which takes most of a second each: what a median needs.
PEER_SAMPLES = 20
#: Told what is being measured, and how much of how much is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What to measure; see `cxr-edge bench --help`."""

    engine: str = "all"
    threads: int = 1
    samples: int = 130
    cold: bool = True
    heatmap: bool = True
    run: Path | None = None
    python: str | None = None


def benchmark(path: Path, images: Sequence[Path], options: Options, progress: Progress) -> dict[str, Any]:
    """Measure every file of a bundle that runs here; the content of the JSON output, raw samples included."""
    bundle = Bundle.open(path)
    predictors, passed_over = open_files(bundle, options.engine, options.threads)
    with _bar(progress, "latency", options.samples + WARM_UP) as tick:
        latencies = measure(predictors, images, options.samples, tick)
    rows = []
    for index, (latency, predictor) in enumerate(zip(latencies, predictors, strict=True)):
        row = _latency_row(latency, latencies[0])
        if options.cold:
            progress("cold start", index, len(latencies))
            start = cold_start(path, latency.file, images[0], *([options.python] if options.python else []))
            row |= {
                "cold_start_s": median(start.seconds),
                "peak_rss_mb": start.peak_rss_mb,
                "cold_starts_s": start.seconds,
            }
            progress("cold start", index + 1, len(latencies))
        if options.heatmap and latency.file.engine != "tensorrt":
            row["heatmap_cost"] = _heatmap_cost(bundle, predictor, images, options, progress)
        rows.append(row)
    record = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "images": len(images),
        "files": rows,
        "passed_over": passed_over,
    }
    return record | ({"keras": _against_keras(predictors, latencies, images, options, progress)} if options.run else {})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": cpu_count(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("cxr-edge", "numpy", "opencv-python-headless")},
    }


def _latency_row(latency: Latency, first: Latency) -> dict[str, Any]:
    totals = latency.samples_ms["total"]
    return {
        "file": latency.file.path,
        "engine": latency.file.engine,
        "precision": latency.file.precision,
        "backend": latency.backend,
        "bytes": latency.file.bytes,
        "stages_ms": {stage: percentiles(latency.samples_ms[stage]) for stage in STAGES},
        "total_against_first": median_ratio(totals, first.samples_ms["total"]),
        "samples_ms": latency.samples_ms,
    }


def _heatmap_cost(
    bundle: Bundle, predictor: Predictor, images: Sequence[Path], options: Options, progress: Progress
) -> dict[str, Any]:
    feed = bundle.manifest.input
    pixels = read_pixels([LabelledImage(path, 0) for path in images], feed.height, feed.width)
    name = predictor.file.path
    with (
        tempfile.TemporaryDirectory() as folder,
        _bar(progress, f"heatmap's cost, {name}", options.samples + 5) as tick,
    ):
        pruned = Path(folder) / name
        without_heatmap(bundle.folder / name, pruned)
        return heatmap_cost(bundle.folder / name, pruned, pixels, options.threads, options.samples, tick)


def _against_keras(
    predictors: Sequence[Predictor],
    latencies: Sequence[Latency],
    images: Sequence[Path],
    options: Options,
    progress: Progress,
) -> dict[str, Any]:
    """Keras with GradientTape and our quickest file in turns, both from file to decision and heatmap."""
    from cxr_edge.benchmarks.peers import keras_peers

    assert options.run is not None
    peers = keras_peers(options.run)
    quickest = min(range(len(latencies)), key=lambda i: median(latencies[i].samples_ms["total"]))
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    with _bar(progress, "Keras with GradientTape", PEER_SAMPLES + 2) as tick:
        for round_ in range(-2, PEER_SAMPLES):
            image = images[round_ % len(images)]
            for name, peer in peers.items():
                start = perf_counter()
                peer(image)
                milliseconds = 1e3 * (perf_counter() - start)
                if round_ >= 0:
                    theirs[name].append(milliseconds)
            mine = sample(predictors[quickest], image)["total"]
            if round_ >= 0:
                ours.append(mine)
            tick()
    return {
        "file": latencies[quickest].file.path,
        "ours_ms": ours,
        "peers": [
            {
                "name": name,
                "total_ms": percentiles(times),
                "times_slower": median_ratio(times, ours),
                "samples_ms": times,
            }
            for name, times in theirs.items()
        ],
    }


@contextmanager
def _bar(progress: Progress, stage: str, total: int) -> Iterator[Callable[[], None]]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    yield tick

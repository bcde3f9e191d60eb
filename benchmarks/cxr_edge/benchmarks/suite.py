"""The benchmark of a bundle as one record."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import cycle
from os import cpu_count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cxr_edge.benchmarks.compare.sides import revision_of_code
from cxr_edge.benchmarks.device.energy import energy_of
from cxr_edge.benchmarks.device.meter import Meter, can_measure_energy
from cxr_edge.benchmarks.device.sensors import find_sensors
from cxr_edge.benchmarks.device.settings import read_settings
from cxr_edge.benchmarks.graph.limit import entropy_floor_ms, limit_of, works_of
from cxr_edge.benchmarks.graph.peaks import measure_peaks
from cxr_edge.benchmarks.heatmap_cost import heatmap_cost, without_heatmap
from cxr_edge.benchmarks.latency import STAGES, WARM_UP, Latency, measure, open_files, sample
from cxr_edge.benchmarks.process import cold_start
from cxr_edge.benchmarks.statistics import median_ratio, percentiles
from cxr_edge.common.dataset import LabelledImage, read_pixels
from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.predictor import Predictor

if TYPE_CHECKING:
    from cxr_edge.benchmarks.peers.keras import Peer

SCHEMA_VERSION = 1
#: Number of images whose size is read.
MOST_SIZES = 100
#: Features of processors on which the speed of networks depends: vectors, and products of int8 (VNNI, dot product).
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
#: Samples of Keras' Grad-CAM, which takes almost a second each; enough for a median.
PEER_SAMPLES, PEER_WARM_UP = 20, 2
#: Function of the stage, the number of finished steps, and the total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """The options of `cxr-edge bench` about what is measured; see its --help."""

    engine: str = "all"
    threads: int = 1
    samples: int = 130
    cold: bool = True
    heatmap: bool = True
    run: Path | None = None
    python: str | None = None


def benchmark(path: Path, images: Sequence[Path], options: Options, progress: Progress) -> dict[str, Any]:
    """Measure each file of a bundle that runs here; return the content of the JSON output, with raw samples."""
    bundle = Bundle.open(path)
    predictors, passed_over = open_files(bundle, options.engine, options.threads)
    sensors = find_sensors()
    with _bar(progress, "latency", 2 * options.samples + WARM_UP) as tick, Meter(sensors) as course:
        latencies, control = measure(predictors, images, options.samples, tick)
    rows = [_latency_row(latency, latencies[0]) for latency in latencies]
    if can_measure_energy(sensors):
        for index, (row, predictor) in enumerate(zip(rows, predictors, strict=True)):
            progress("energy", index, len(rows))
            row["energy"] = asdict(energy_of(_decisions(predictor, images), sensors))
    limits = _limits(bundle, rows, images, options.threads)
    for index, (row, file) in enumerate(zip(rows, (latency.file for latency in latencies), strict=True)):
        if options.cold:
            progress("cold start", index, len(rows))
            row |= _cold_start(path, file, images[0], options.python)
            progress("cold start", index + 1, len(rows))
        if options.heatmap and file.engine != "tensorrt":
            row["heatmap_cost"] = _heatmap_cost(bundle, file.path, images, options, progress)
    record = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "revision": revision_of_code(),
        "bundle": {
            "folder": str(bundle.folder.resolve()),
            "sha256": {file.path: file.sha256 for file in bundle.manifest.files},
        },
        "images": len(images),
        "megapixels": megapixels(images),
        "control_ms": control,
        "limit": limits,
        "device": {"settings": read_settings().to_dict(), "measured": course.to_dict()},
        "files": rows,
        "passed_over": passed_over,
    }
    return record | ({"keras": _against_keras(predictors, latencies, images, options, progress)} if options.run else {})


def _limits(bundle: Bundle, rows: list[dict[str, Any]], images: Sequence[Path], threads: int) -> dict[str, Any] | None:
    """Measure what the machine can do at best, and add to each row its limit; None without an fp32 ONNX file."""
    if (works := works_of(bundle)) is None:
        return None
    peaks, floor = measure_peaks(threads, 4 * sum(work.weights for work in works)), entropy_floor_ms(images)
    for row in rows:
        found = limit_of(works, row["precision"], peaks, floor)
        measured = row["stages_ms"]["inference"]["p50"]
        row["limit"] = {**asdict(found), "share": found.network_ms / measured}
    return {**peaks.to_dict(), "decode_ms": floor}


def megapixels(images: Sequence[Path]) -> float:
    """Median size of the originals, because decoding takes longer than the network on large ones."""
    return median(read_image(path).size for path in images[:MOST_SIZES]) / 1e6


def machine() -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    info = _first_core()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "cores": cpu_count(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("cxr-edge", "numpy", "opencv-python-headless")},
    }


def _first_core() -> dict[str, str]:
    """The fields of the first core in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


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


def _decisions(predictor: Predictor, images: Sequence[Path]) -> Callable[[], None]:
    """A function that decides on one image after another."""
    following = cycle(images)

    def decide() -> None:
        predictor.predict(next(following))

    return decide


def _cold_start(bundle: Path, file: ModelFile, image: Path, python: str | None) -> dict[str, Any]:
    start = cold_start(bundle, file, image, python or sys.executable)
    return {"cold_start_s": median(start.seconds), "peak_rss_mb": start.peak_rss_mb, "cold_starts_s": start.seconds}


def _heatmap_cost(
    bundle: Bundle, name: str, images: Sequence[Path], options: Options, progress: Progress
) -> dict[str, Any]:
    feed = bundle.manifest.input
    pixels = read_pixels([LabelledImage(path, 0) for path in images], feed.height, feed.width)
    bar = _bar(progress, f"heatmap cost, {name}", options.samples + WARM_UP)
    with tempfile.TemporaryDirectory() as folder, bar as tick:
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
    """Keras with GradientTape and our fastest file in turns, from file to decision and heatmap."""
    from cxr_edge.benchmarks.peers.keras import keras_peers

    assert options.run is not None
    fastest = min(range(len(latencies)), key=lambda i: median(latencies[i].samples_ms["total"]))
    ours: list[float] = []
    theirs: dict[str, list[float]] = {}
    with _bar(progress, "Keras with GradientTape", PEER_SAMPLES + PEER_WARM_UP) as tick:
        peers = keras_peers(options.run)
        for round_ in range(PEER_SAMPLES + PEER_WARM_UP):
            image = images[(round_ - PEER_WARM_UP) % len(images)]
            for name, peer in peers.items():
                theirs.setdefault(name, []).append(_milliseconds(peer, image))
            ours.append(sample(predictors[fastest], image)["total"])
            tick()
    ours = ours[PEER_WARM_UP:]
    return {
        "file": latencies[fastest].file.path,
        "ours_ms": ours,
        "peers": [_peer_row(name, times[PEER_WARM_UP:], ours) for name, times in theirs.items()],
    }


def _milliseconds(peer: Peer, image: Path) -> float:
    start = perf_counter()
    peer(image)
    return 1e3 * (perf_counter() - start)


def _peer_row(name: str, times: list[float], ours: list[float]) -> dict[str, Any]:
    slower = median_ratio(times, ours)
    return {"name": name, "total_ms": percentiles(times), "times_slower": slower, "samples_ms": times}


@contextmanager
def _bar(progress: Progress, stage: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function that moves the bar of a stage by one step."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    yield tick

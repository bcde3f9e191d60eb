"""What `cxr-edge bench` measures instead of the times of the files: peers, profile, load, scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_edge.benchmarks.compare.against import Progress
from cxr_edge.benchmarks.graph.limit import works_of
from cxr_edge.benchmarks.graph.peaks import measure_peaks
from cxr_edge.benchmarks.latency import open_files
from cxr_edge.benchmarks.suite import SCHEMA_VERSION, Options, machine, megapixels
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import EngineError, MissingExtraError, UsageError
from cxr_edge.runtime.files import write_atomically

#: Latency bound (ms) of the server scenario, and its first rate as a share of the offline throughput.
BOUND_MS, FIRST_RATE = 100.0, 0.5
#: Largest number of images of the curve over images.
LARGEST_COUNT = 10_000


def peers(bundle: Path, images: Sequence[Path], options: Options, progress: Progress) -> dict[str, Any]:
    """Our files and what a user would run instead, in turns."""
    if options.run is None:
        raise UsageError("--peers needs the trained network; name its run: --keras runs/first")
    # TensorFlow reads these variables when it starts.
    os.environ |= {"TF_NUM_INTRAOP_THREADS": str(options.threads), "TF_NUM_INTEROP_THREADS": "1"}
    from cxr_edge.benchmarks.peers.contest import contest
    from cxr_edge.common.backend import import_keras_quietly

    import_keras_quietly()
    found = contest(bundle, options.run, images, options.engine, options.threads, progress)
    return _record("peers", bundle, found | {"megapixels": megapixels(images)})


def profile(bundle: Path, images: Sequence[Path], options: Options, folder: Path, progress: Progress) -> dict[str, Any]:
    """Time by operator of each file, as a table and a picture in `folder`."""
    from cxr_edge.benchmarks.graph import pictures
    from cxr_edge.benchmarks.graph import profile as profiling
    from cxr_edge.runtime.imaging.preprocess import read_input

    opened = Bundle.open(bundle)
    if (works := works_of(opened)) is None:
        raise EngineError(
            f"{bundle}: found no fp32 ONNX file, expected one, from which the work of the network is counted; export "
            "it with: cxr-edge export RUN -o BUNDLE --format onnx"
        )
    peaks = measure_peaks(options.threads, 4 * sum(work.weights for work in works))
    feed = opened.manifest.input
    image = read_input(images[0], feed.height, feed.width)[None]
    found, left_out = [], []
    files = [file for file in opened.manifest.files if options.engine in ("all", file.engine)]
    for index, file in enumerate(files):
        try:
            operators = profiling.profile(opened, file, image, options.threads, peaks)
        except (EngineError, MissingExtraError) as error:
            left_out.append(f"{file.path}: {error}")
            continue
        found.append(profiling.to_dict(file.path, operators))
        title = f"{file.path}, {options.threads} thread(s), {machine()['processor']}"
        picture = pictures.profile_picture(title, operators, peaks, file.precision)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{file.path}.png", picture)
        progress("profile", index + 1, len(files))
    return _record("profile", bundle, {"peaks": peaks.to_dict(), "files": found, "passed_over": left_out})


def load(bundle: Path, images: Sequence[Path], options: Options, seconds: float, progress: Progress) -> dict[str, Any]:
    """MLPerf's scenarios with the first file that runs here."""
    from cxr_edge.benchmarks.load.scenarios import SCENARIOS, largest_rate, run_scenario

    predictors, left_out = open_files(Bundle.open(bundle), options.engine, options.threads)
    workers = max((os.cpu_count() or 1) // options.threads, 1)
    single = run_scenario("single stream", predictors[0], images, 1, seconds, 50)
    progress("load", 1, len(SCENARIOS))
    offline = run_scenario("offline", predictors[0], images, workers, seconds, 1e3 / single.value)
    progress("load", 2, len(SCENARIOS))
    server = largest_rate(predictors[0], images, workers, seconds, FIRST_RATE * offline.value, BOUND_MS)
    progress("load", 3, len(SCENARIOS))
    results = [found.to_dict() for found in (single, offline, server) if found is not None]
    facts = {"file": predictors[0].file.path, "threads": options.threads, "workers": workers, "images": len(images)}
    return _record("load", bundle, facts | {"scenarios": results, "passed_over": left_out})


def _record(kind: str, bundle: Path, content: dict[str, Any]) -> dict[str, Any]:
    facts = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "bundle": str(bundle),
    }
    return facts | content


def scale(bundle: Path, images: Sequence[Path], options: Options, folder: Path, progress: Progress) -> dict[str, Any]:
    """Curves of the first file that runs here, with a picture in `folder`."""
    from dataclasses import asdict

    from cxr_edge.benchmarks.scale.curves import Curve, over_batch, over_images, over_networks, over_size, over_threads
    from cxr_edge.benchmarks.scale.pictures import curves_picture

    predictors, left_out = open_files(Bundle.open(bundle), options.engine, options.threads)
    first = predictors[0]
    parts: tuple[Callable[[], Curve], ...] = (
        lambda: over_images(first, images, LARGEST_COUNT),
        lambda: over_threads(bundle, first.file.engine, first.file.precision, images),
        lambda: over_batch(first),
        lambda: over_size(first, images[0]),
    )
    curves = []
    for index, part in enumerate(parts):
        curves.append(part())
        progress("scale", index + 1, len(parts))
    try:
        curves += over_networks(options.threads)
    except ImportError as error:
        left_out.append(f"input and alpha: '{error.name}' is not installed; run: pip install 'cxr-edge[export]'")
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{first.file.path}, {options.threads} thread(s), {machine()['processor']}"
    write_atomically(folder / "scale.png", curves_picture(title, curves))
    rows = [asdict(curve) | {"words": curve.words} for curve in curves]
    return _record("scale", bundle, {"file": first.file.path, "curves": rows, "passed_over": left_out})

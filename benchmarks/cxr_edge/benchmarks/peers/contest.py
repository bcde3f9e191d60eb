"""Peers and our files in turns on the same image files, each with its parity."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.latency import open_files
from cxr_edge.benchmarks.peers import converted
from cxr_edge.benchmarks.peers.bare import bare
from cxr_edge.benchmarks.peers.keras import decider, keras_function, keras_peers, keras_predict
from cxr_edge.benchmarks.peers.litert_tool import benchmark_model
from cxr_edge.benchmarks.statistics import median_ratio, percentiles
from cxr_edge.common.run import Run
from cxr_edge.common.statistics import Floats, to_probability
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import BundleError, EngineError
from cxr_edge.runtime.imaging.preprocess import read_input
from cxr_edge.runtime.predictor import Predictor

#: Rounds that are not counted.
WARM_UP = 3
BOTH, DECISION = "decision and heatmap", "decision"


@dataclass(frozen=True)
class Entry:
    """One way to decide.

    Attributes
    ----------
    name, gives
        What the table calls it, and whether it gives a heatmap, too.
    decide
        Image file -> probability.
    ours
        Whether this is a file of the bundle.
    """

    name: str
    gives: str
    decide: Callable[[Path], float]
    ours: bool = False


def contest(
    bundle: Path,
    run: Path,
    images: Sequence[Path],
    engine: str,
    threads: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Time all peers and our files in random turns, one image per round.

    Returns
    -------
    Rows with times, parity and ratio to our quickest file; what could not be measured; our share over bare calls.

    Raises
    ------
    BundleError
        If the bundle was not exported from the run.
    """
    opened, trained = Bundle.open(bundle), Run.open(run)
    _check_origin(opened, trained)
    predictors, left_out = open_files(opened, engine, threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        entries, missing = _entries(predictors, trained, folder, list(images), threads)
        times, probabilities = _in_turns(entries, images, progress)
    reference = _reference(trained, images)
    threshold = opened.manifest.operating_points[0].threshold
    rows = [_row(entry, times[i], probabilities[i], reference, threshold) for i, entry in enumerate(entries)]
    _against_ours(entries, rows)
    quickest = min((p for p, e in zip(predictors, rows, strict=False)), key=lambda p: _p50(rows, p.file.path))
    share = _share(quickest, images, threads, progress)
    tool, reasons = _tool(opened, threads)
    return {
        "threads": threads, "images": len(images), "rows": rows,
        "quickest_equal": (quickest_equal(rows) or {}).get("name"),
        "passed_over": [*left_out, *missing, *reasons], "bare": share, "benchmark_model": tool,
    }  # fmt: skip


def _check_origin(bundle: Bundle, run: Run) -> None:
    expected, found = bundle.manifest.training.get("created"), run.record.get("created")
    if expected != found:
        raise BundleError(
            f"{run.folder}: found a run of {found}, expected that of {expected}, from which {bundle.folder} was "
            "exported; name the run of this bundle with --keras, or its bundle with -m"
        )


def _entries(
    predictors: Sequence[Predictor], run: Run, folder: Path, images: list[Path], threads: int
) -> tuple[list[Entry], list[str]]:
    """Our files, then the peers that can run here; and why the others cannot."""

    def ours(predictor: Predictor) -> Entry:
        return Entry(predictor.file.path, BOTH, lambda path: predictor.predict(path).probability, ours=True)

    def peer(name: str, decide: converted.Decide) -> Entry:
        return Entry(name, DECISION, lambda path: float(to_probability(np.array(decide(path)), run.temperature)))

    network = decider(run.network())
    entries = [ours(predictor) for predictor in predictors]
    entries += [peer("Keras predict", keras_predict(network)), peer("Keras tf.function", keras_function(network))]
    for name, explain in keras_peers(run.folder).items():
        entries.append(Entry(f"{name}, GradientTape", BOTH, lambda path, explain=explain: explain(path)[0]))  # type: ignore[misc]
    made: Mapping[str, Callable[[], converted.Decide]] = {
        "Pillow + tf2onnx + ONNX Runtime": lambda: converted.onnx_runtime(network, folder, threads),
        "OpenCV + TFLite converter int8": lambda: converted.plain_int8(network, images, threads),
        "OpenCV + tf2onnx + OpenVINO": lambda: converted.openvino(network, folder, threads),
    }
    missing = []
    for name, make in made.items():
        try:
            entries.append(peer(name, make()))
        except ImportError as error:
            missing.append(f"{name}: '{error.name}' is not installed; run: pip install {error.name}")
    return entries, missing


def _in_turns(
    entries: Sequence[Entry], images: Sequence[Path], progress: Callable[[str, int, int], None]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(entries, images) float64: milliseconds, and probabilities."""
    times, probabilities = np.empty((2, len(entries), len(images)))
    rng = random.Random(0)
    for round_ in range(-WARM_UP, len(images)):
        image = round_ % len(images)
        for index in rng.sample(range(len(entries)), len(entries)):
            start = perf_counter()
            probabilities[index, image] = entries[index].decide(images[image])
            times[index, image] = 1e3 * (perf_counter() - start)
        progress("peers", round_ + WARM_UP + 1, len(images) + WARM_UP)
    return times, probabilities


def _reference(run: Run, images: Sequence[Path]) -> npt.NDArray[np.float32]:
    """(N,) probabilities of the trained network on images that the project read."""
    feed = run.input
    pixels = np.stack([read_input(path, feed.height, feed.width) for path in images]).astype(np.float32)
    outputs = run.network().predict(pixels, verbose=0)
    logits = outputs[0] if isinstance(outputs, list | tuple) else outputs
    return to_probability(np.ravel(logits), run.temperature)


def _row(
    entry: Entry,
    times: npt.NDArray[np.float64],
    probability: npt.NDArray[np.float64],
    reference: Floats,
    threshold: float,
) -> dict[str, Any]:
    flips = int(((probability >= threshold) != (reference >= threshold)).sum())
    return {
        "name": entry.name,
        "gives": entry.gives,
        "ours": entry.ours,
        "flips": flips,
        "max_difference": float(np.abs(probability - reference).max()),
        "median_ms": float(np.median(times)),
        "total_ms": percentiles(times.tolist()),
        "samples_ms": times.tolist(),
    }


def _against_ours(entries: Sequence[Entry], rows: list[dict[str, Any]]) -> None:
    """Add to each row its time divided by that of our quickest file."""
    ours = min((row for row in rows if row["ours"]), key=lambda row: float(row["median_ms"]))
    for row in rows:
        row["times_slower"] = median_ratio(row["samples_ms"], ours["samples_ms"])


def quickest_equal(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The quickest peer whose parity is at least that of our quickest file; None if there is none.

    Its flips and its largest difference must both be at most ours. Flips alone, on few images, are mostly chance.
    """
    ours = min((row for row in rows if row["ours"]), key=lambda row: float(row["median_ms"]))
    equal = [
        row
        for row in rows
        if not row["ours"] and row["flips"] <= ours["flips"] and row["max_difference"] <= ours["max_difference"]
    ]
    return min(equal, key=lambda row: float(row["median_ms"]), default=None)


def _p50(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return next(float(row["median_ms"]) for row in rows if row["name"] == name)


def _share(
    predictor: Predictor, images: Sequence[Path], threads: int, progress: Callable[[str, int, int], None]
) -> dict[str, Any] | None:
    """Our time divided by that of bare calls, on the JPEG files; None if there is none."""
    files = [path for path in images if path.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        return None
    both: list[Callable[[Path], Any]] = [predictor.predict, bare(predictor, threads)]
    times: list[list[float]] = [[], []]
    rng, rounds = random.Random(0), max(len(files), 200)
    for round_ in range(-WARM_UP, rounds):
        for which in rng.sample((0, 1), 2):
            start = perf_counter()
            both[which](files[round_ % len(files)])
            if round_ >= 0:
                times[which].append(1e3 * (perf_counter() - start))
        progress("bare calls", round_ + WARM_UP + 1, rounds + WARM_UP)
    return {"file": predictor.file.path, **median_ratio(*times), "ours_ms": times[0], "bare_ms": times[1]}


def _tool(bundle: Bundle, threads: int) -> tuple[dict[str, Any], list[str]]:
    """What LiteRT's own program says about each TFLite file; and why it says nothing."""
    found, reasons = {}, []
    for file in bundle.manifest.files:
        if file.engine == "litert":
            try:
                found[file.path] = benchmark_model(bundle.folder / file.path, threads)
            except EngineError as error:
                reasons.append(f"LiteRT's benchmark_model: {error}")
    return found, reasons

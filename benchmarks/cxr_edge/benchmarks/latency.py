"""Latency of each stage, from the image file to the decision and its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from cxr_edge.benchmarks.compare.turns import control
from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile
from cxr_edge.runtime.errors import EngineError, MissingExtraError
from cxr_edge.runtime.explanation.gradcam import overlay
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.predictor import Predictor, load

STAGES = ("decode", "preprocess", "inference", "total", "explanation")
WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Raw samples of one file in milliseconds by stage.

    `total` is the time of `Predictor.predict`: all stages, the heatmap, and what is computed from the outputs.
    `explanation` is the time to draw the picture of the heatmap.
    """

    file: ModelFile
    backend: str
    samples_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})


def open_files(bundle: Bundle, engine: str, threads: int) -> tuple[list[Predictor], list[str]]:
    """Load each file of a bundle that can run here; also return why the others cannot."""
    predictors, passed_over = [], []
    for file in bundle.manifest.files:
        if engine not in ("all", file.engine):
            continue
        try:
            predictors.append(load(bundle.folder, file.engine, file.precision, threads=threads))
        except (EngineError, MissingExtraError) as error:
            passed_over.append(f"{file.path}: {error}")
    if not predictors:
        raise EngineError(
            f"{bundle.folder}: no file runs here with engine {engine} ({'; '.join(passed_over) or 'it has none'}); "
            "install the engine, or choose another"
        )
    return predictors, passed_over


def measure(
    predictors: Sequence[Predictor], images: Sequence[Path], samples: int, tick: Callable[[], None]
) -> tuple[list[Latency], list[float]]:
    """Time all predictors and the control in turns, one image per round, for `samples` rounds after warm-up.

    The pictures are drawn afterwards: they need so much memory that the next prediction would be slower.

    Returns
    -------
    Samples of each predictor, and milliseconds of the control.
    """
    latencies = [Latency(p.file, p.engine.backend) for p in predictors]
    with control() as ask:
        times = [_round(predictors, latencies, images, round_, ask, tick) for round_ in range(-WARM_UP, samples)]
    for round_ in range(samples):
        for predictor, latency in zip(predictors, latencies, strict=True):
            latency.samples_ms["explanation"].append(_draw_ms(predictor, images[round_ % len(images)]))
        tick()
    return latencies, times[WARM_UP:]


def _round(
    predictors: Sequence[Predictor], latencies: Sequence[Latency], images: Sequence[Path], round_: int,
    ask: Callable[[], float], tick: Callable[[], None],
) -> float:  # fmt: skip
    """Time each predictor once, then the control; keep the samples unless this round warms up."""
    for predictor, latency in zip(predictors, latencies, strict=True):
        stages = sample(predictor, images[round_ % len(images)])
        if round_ >= 0:
            for stage, milliseconds in stages.items():
                latency.samples_ms[stage].append(milliseconds)
    tick()
    return ask()


def sample(predictor: Predictor, image: Path) -> dict[str, float]:
    """Milliseconds of one prediction, by stage and in total."""
    start = perf_counter()
    stages = predictor.predict(image).timings_ms
    return {**stages, "total": 1e3 * (perf_counter() - start)}


def _draw_ms(predictor: Predictor, image: Path) -> float:
    prediction = predictor.predict(image)
    gray = read_image(image)
    start = perf_counter()
    overlay(gray, prediction.heatmap, predictor.manifest.heatmap, predictor.manifest.input, prediction.label)
    return 1e3 * (perf_counter() - start)

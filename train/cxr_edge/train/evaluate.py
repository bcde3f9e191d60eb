"""A model on labelled radiographs: figures with intervals, at each operating point, and under a change of hospital."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cxr_edge.runtime.bundle import OperatingPoint
from cxr_edge.runtime.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.errors import DataError, UsageError
from cxr_edge.train.metrics import (
    LEVEL,
    RESAMPLES,
    Cases,
    Confusion,
    Estimate,
    confusion,
    decision_metrics,
    score_metrics,
)
from cxr_edge.train.patients import patient_of
from cxr_edge.train.shift import Shift, measure_shift
from cxr_edge.train.subject import Subject

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Source:
    """The images that a model is evaluated on, and how far their figures can be trusted.

    Attributes
    ----------
    data
        As the user named it.
    images
        Both classes.
    description
        What they are to the model, as a sentence.
    seen
        Whether the model was trained on some of them; None if that cannot be known.
    """

    data: Path
    images: Sequence[LabelledImage]
    description: str
    seen: bool | None


@dataclass(frozen=True)
class AtPoint:
    """Decisions at one operating point."""

    point: OperatingPoint
    metrics: dict[str, Estimate]
    confusion: Confusion


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; `heatmaps` is (N, h, w) float32 ≥ 0, image by image."""

    subject: Subject
    source: Source
    cases: Cases
    heatmaps: FloatArray
    scores: dict[str, Estimate]
    points: tuple[AtPoint, ...]
    shift: Shift | None

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(set(self.cases.patients.tolist()))

    def to_dict(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        subject, source = self.subject, self.source
        return {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": {"path": str(subject.path), "kind": subject.kind, "name": subject.name}
            | {"backend": subject.backend, "temperature": subject.temperature},
            "data": {
                "path": str(source.data),
                "description": source.description,
                "seen_in_training": source.seen,
                "images": len(source.images),
                "pneumonia": int(self.cases.labels.sum()),
                "patients": self.patients,
                "fingerprint": fingerprint(source.images),
            },
            "intervals": {"level": LEVEL, "resamples": RESAMPLES, "unit": "patient"},
            "metrics": {name: asdict(estimate) for name, estimate in self.scores.items()},
            "operating_points": [
                asdict(at.point)
                | {"metrics": {name: asdict(e) for name, e in at.metrics.items()}, "confusion": asdict(at.confusion)}
                for at in self.points
            ],
            "shift": _shift_dict(self.shift) if self.shift else None,
        }

    def to_json(self) -> str:
        """Text of `metrics.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def choose_images(subject: Subject, data: Path, split: str | None) -> Source:
    """The images to evaluate on.

    Parameters
    ----------
    split
        `validation`: those that a run held out; `all`; None: those held out, if the model is a run and `data` has them,
        because the others there were trained on.

    Raises
    ------
    DataError
        If `data` cannot be used, or lacks the images asked for or a class of them.
    UsageError
        If `validation` is asked for of a bundle, which does not tell it.
    """
    if split == "validation" and subject.kind == "bundle":
        raise UsageError(f"{subject.path}: a bundle does not tell which images were held out; evaluate the run instead")
    images = read_dataset(data)
    files = subject.validation_files
    # A test split may use the same names for other images.
    pooled = [i for i in images if i.path.parents[1].name != "test"]
    held_out = [i for i in pooled if i.key in files]
    if split == "validation" and not held_out:
        raise DataError(f"{data}: has none of the images that {subject.path} held out; name the data it was trained on")
    if held_out and split != "all":
        if len({image.label for image in held_out}) < 2:
            raise DataError(f"{data}: has held-out images of one class only; name the data the run was trained on")
        text = f"the {len(held_out)} images of the patients that the run held out; they chose its thresholds"
        return Source(data, held_out, text, seen=False)
    if held_out or _was_trained_on(subject, data):
        text = f"all {len(images)} images, among them those that the network was trained on: these figures flatter it"
        return Source(data, images, text, seen=True)
    text = f"all {len(images)} images; the model cannot tell whether it was trained on any of them"
    return Source(data, images, text, seen=None)


def evaluate(subject: Subject, source: Source, with_shift: bool, step: Callable[[str], None]) -> Evaluation:
    """Run a model over images and measure it.

    Parameters
    ----------
    with_shift
        Whether to measure the proxies of another hospital too, which takes 17 times as long.
    step
        Told what is done next.

    Raises
    ------
    DataError
        If an image cannot be read, or the model answers with anything but numbers.
    """
    step(f"reading {len(source.images)} images")
    pixels = read_pixels(source.images, subject.input.height, subject.input.width)
    step("deciding")
    outputs = subject.run(pixels)
    if not np.isfinite(outputs.logit).all():
        raise DataError(f"{subject.path}: gives logits that are no numbers; train or export it again")
    cases = Cases(
        labels=np.array([image.label for image in source.images], np.int64),
        logit=outputs.logit,
        probability=outputs.probability,
        patients=np.array([patient_of(image.path) for image in source.images]),
    )
    step("bootstrap over patients")
    points = tuple(
        AtPoint(point, decision_metrics(cases, point.threshold), confusion(cases, point.threshold))
        for point in subject.operating_points
    )
    scores = score_metrics(cases)
    shift = None
    if with_shift:
        threshold, temperature = subject.operating_points[0].threshold, subject.temperature
        shift = measure_shift(
            lambda x: subject.run(x).logit, source.images, pixels, threshold, temperature,
            lambda name: step(f"change of hospital: {name}"),
        )  # fmt: skip
    return Evaluation(subject, source, cases, outputs.heatmap, scores, points, shift)


def _was_trained_on(subject: Subject, data: Path) -> bool:
    """Whether the train and val images of `data` are the very ones that the model was made of."""
    if subject.trained_on is None:
        return False
    try:
        images = read_dataset(data, ("train", "val"))
    except DataError:  # only a test split
        return False
    return fingerprint(images) == subject.trained_on


def _shift_dict(shift: Shift) -> dict[str, Any]:
    return {
        "worst": shift.worst.name,
        "worst_decisions": shift.worst_decisions.name,
        "proxies": [asdict(proxy) for proxy in shift.proxies],
    }

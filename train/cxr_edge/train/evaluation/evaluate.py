"""A model on labelled radiographs: figures with intervals, at each operating point, and under a change of hospital."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cxr_edge.common.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.common.statistics import BINS
from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.errors import DataError, UsageError
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.evaluation.faithfulness import SHARES, Faithfulness, measure_faithfulness
from cxr_edge.train.evaluation.metrics import (
    LEVEL,
    RESAMPLES,
    Cases,
    Confusion,
    Estimate,
    ReliabilityBin,
    classification_report,
    confusion,
    decision_metrics,
    mean_over_images,
    reliability,
    score_metrics,
)
from cxr_edge.train.evaluation.shift import Shift, measure_shift
from cxr_edge.train.evaluation.subject import Subject

SCHEMA_VERSION = 1
#: Parts of a data set that a run was not trained on, the most trustworthy first, and what they are.
PARTS = {
    "holdout": "the {} images of the patients that the run held out and that chose nothing",
    "validation": "the {} images of the patients that the run held out; they chose epoch, temperature and thresholds",
}


@dataclass(frozen=True)
class Source:
    """The images that a model is evaluated on, and how far their figures can be trusted.

    Attributes
    ----------
    data
        As the user named it.
    images
        Both classes.
    split
        `holdout`: patients that chose nothing; `validation`: those that chose epoch, temperature and thresholds; `all`.
    description
        What they are to the model, as a sentence.
    seen
        Whether the model was trained on some of them; None if that cannot be known.
    """

    data: Path
    images: Sequence[LabelledImage]
    split: str
    description: str
    seen: bool | None


@dataclass(frozen=True)
class AtPoint:
    """Decisions at one operating point; `report` has precision, recall and F1 of each class."""

    point: OperatingPoint
    metrics: dict[str, Estimate]
    report: dict[str, dict[str, Estimate]]
    confusion: Confusion


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes
    ----------
    heatmaps
        (N, h, w) float32 ≥ 0, image by image.
    reliability
        Bins of equal width, ascending, those without images among them.
    in_distribution
        Share of the images of no more novelty than the model's threshold.
    shift, faithfulness
        None where they were not asked for.
    """

    subject: Subject
    source: Source
    cases: Cases
    heatmaps: FloatArray
    scores: dict[str, Estimate]
    points: tuple[AtPoint, ...]
    reliability: tuple[ReliabilityBin, ...]
    in_distribution: Estimate
    shift: Shift | None
    faithfulness: Faithfulness | None

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
                "split": source.split,
                "description": source.description,
                "seen_in_training": source.seen,
                "images": len(source.images),
                "pneumonia": int(self.cases.labels.sum()),
                "patients": self.patients,
                "fingerprint": fingerprint(source.images),
            },
            "intervals": {"level": LEVEL, "resamples": RESAMPLES, "unit": "patient"},
            "metrics": {name: asdict(estimate) for name, estimate in self.scores.items()},
            "operating_points": [_point_dict(at) for at in self.points],
            "calibration": {"bins": BINS, "reliability": [asdict(each) for each in self.reliability]},
            "novelty": {"threshold": subject.novelty_threshold, "in_distribution": asdict(self.in_distribution)},
            "shift": _shift_dict(self.shift) if self.shift else None,
            "faithfulness": _faithfulness_dict(self.faithfulness) if self.faithfulness else None,
        }

    def to_json(self) -> str:
        """Text of `metrics.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def choose_images(subject: Subject, data: Path, split: str | None) -> Source:
    """The images to evaluate on.

    Parameters
    ----------
    split
        `holdout` or `validation`: a part that a run was not trained on; `all`; None: the first of the three that the
        model tells of and `data` has images of.

    Raises
    ------
    DataError
        If `data` cannot be used, or lacks the images asked for or a class of them.
    UsageError
        If a part is asked for that the model does not tell of, as a bundle never does.
    """
    images = read_dataset(data)
    # A test split may use the same names for other images.
    pooled = [i for i in images if i.path.parents[1].name != "test"]
    parts = {"holdout": subject.holdout_files, "validation": subject.validation_files}
    for part in PARTS if split is None else [split] if split in PARTS else []:
        found = [image for image in pooled if image.key in parts[part]]
        if found or split:
            _check_part(subject, data, part, parts[part], found)
            return Source(data, found, part, PARTS[part].format(len(found)), seen=False)
    if any(image.key in files for files in parts.values() for image in pooled) or _was_trained_on(subject, data):
        text = f"all {len(images)} images, among them those that the network was trained on: these figures flatter it"
        return Source(data, images, "all", text, seen=True)
    text = f"all {len(images)} images; the model cannot tell whether it was trained on any of them"
    return Source(data, images, "all", text, seen=None)


def _check_part(
    subject: Subject, data: Path, part: str, files: Collection[str], found: Sequence[LabelledImage]
) -> None:
    if subject.kind == "bundle":
        raise UsageError(f"{subject.path}: a bundle does not tell which images were held out; evaluate the run instead")
    if not files:
        raise UsageError(f"{subject.path}: was trained without a hold-out; take --split validation, or train again")
    if not found:
        raise DataError(f"{data}: has none of the {part} images of {subject.path}; name the data it was trained on")
    if len({image.label for image in found}) < 2:
        raise DataError(f"{data}: has {part} images of one class only; name the data the run was trained on")


def evaluate(
    subject: Subject, source: Source, with_shift: bool, with_faithfulness: bool, step: Callable[[str], None]
) -> Evaluation:
    """Run a model over images and measure it.

    Parameters
    ----------
    with_shift
        Whether to measure the proxies of another hospital too, which decides 16 times on each image.
    with_faithfulness
        Whether to measure the heatmaps too, which decides once more on each image, and 10,000 times on some.
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
    points = tuple(_at_point(cases, point) for point in subject.operating_points)
    scores = score_metrics(cases)
    familiar = mean_over_images((outputs.novelty <= subject.novelty_threshold).astype(float), cases.patients)
    shift = faithfulness = None
    if with_shift:
        threshold, temperature = subject.operating_points[0].threshold, subject.temperature
        shift = measure_shift(
            lambda x: outputs.logit if x is pixels else subject.run(x).logit,  # as they are, they are known
            source.images, pixels, threshold, temperature, lambda name: step(f"change of hospital: {name}"),
        )  # fmt: skip
    if with_faithfulness:
        faithfulness = measure_faithfulness(subject, pixels, cases, outputs.heatmap, step)
    bins = tuple(reliability(cases))
    return Evaluation(subject, source, cases, outputs.heatmap, scores, points, bins, familiar, shift, faithfulness)


def _at_point(cases: Cases, point: OperatingPoint) -> AtPoint:
    threshold = point.threshold
    return AtPoint(
        point,
        decision_metrics(cases, threshold),
        classification_report(cases, threshold),
        confusion(cases, threshold),
    )


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


def _point_dict(at: AtPoint) -> dict[str, Any]:
    record = asdict(at)
    return record.pop("point") | record


def _faithfulness_dict(found: Faithfulness) -> dict[str, Any]:
    """As measured, with curves averaged over the images."""
    curves = [
        {"way": each.way, "substitute": each.substitute}
        | {
            "probability_of_substitute": each.of_substitute,
            "heatmap": each.heatmap.mean(axis=0).tolist(),
            "random": each.random.mean(axis=0).tolist(),
        }
        | {name: asdict(getattr(each, name)) for name in ("heatmap_area", "random_area", "gain")}
        for each in found.curves
    ]
    return asdict(found) | {"shares": SHARES.tolist(), "curves": curves}

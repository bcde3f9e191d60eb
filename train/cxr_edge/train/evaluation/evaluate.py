"""Evaluation of a model on labelled radiographs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cxr_edge.common.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.common.metrics import (
    LEVEL,
    RESAMPLES,
    Cases,
    Confusion,
    Estimate,
    ReliabilityBin,
    Triage,
    classification_report,
    confusion,
    decision_metrics,
    mean_over_images,
    reliability,
    score_metrics,
    triage_metrics,
)
from cxr_edge.common.statistics import BINS
from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.errors import DataError, UsageError
from cxr_edge.train.data.masks import LungMasks, find_masks, read_masks
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.evaluation.evidence import Evidence, measure_evidence
from cxr_edge.train.evaluation.faithfulness import SHARES, Faithfulness, measure_faithfulness
from cxr_edge.train.evaluation.shift import Shift, measure_shift
from cxr_edge.train.evaluation.subject import Subject

SCHEMA_VERSION = 1
#: Parts of a data set that a run was not trained on, the most trustworthy first, and their descriptions.
PARTS = {
    "holdout": "the {} hold-out images of the run, whose patients chose nothing",
    "validation": "the {} validation images of the run, whose patients chose epoch, temperature and thresholds",
}


@dataclass(frozen=True)
class Source:
    """The images for an evaluation, and how far its figures can be trusted.

    Attributes
    ----------
    data
        The data set as the user named it.
    images
        Images of both classes.
    split
        `holdout`: patients that chose nothing. `validation`: those that chose epoch, temperature and thresholds. `all`.
    description
        Relation of the images to the model, in words.
    seen
        Whether the model was trained on some of them; None if it is not known.
    """

    data: Path
    images: Sequence[LabelledImage]
    split: str
    description: str
    seen: bool | None


@dataclass(frozen=True)
class AtPoint:
    """Decisions at one operating point.

    Attributes
    ----------
    metrics, report, confusion
        Of the images that are not answered `UNSURE`; `report` has precision, recall and F1 of each class.
    triage
        The figures of a three-way operating point; None if there are two answers.
    """

    point: OperatingPoint
    metrics: dict[str, Estimate]
    report: dict[str, dict[str, Estimate]]
    confusion: Confusion
    triage: Triage | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes
    ----------
    heatmaps
        (N, h, w) float32 ≥ 0.
    reliability
        Bins of equal width, ascending; some may have no images.
    in_distribution
        Share of the images whose novelty is at most the model's threshold.
    shift, faithfulness, evidence
        None if they were not requested.
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
    evidence: Evidence | None = None

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
            "evidence": asdict(self.evidence) if self.evidence else None,
        }


def choose_images(subject: Subject, data: Path, split: str | None) -> Source:
    """Choose the images for an evaluation.

    Parameters
    ----------
    split
        `holdout` or `validation`: a part that a run was not trained on. `all`. None: the first of the three for which
        the model names images that `data` has.

    Raises
    ------
    DataError
        If `data` cannot be used, or does not have the requested images or one of their classes.
    UsageError
        If the model does not name the images of the requested part. A bundle never does.
    """
    images = read_dataset(data)
    # A test split may use the same names for other images.
    pooled = [i for i in images if i.path.parents[1].name != "test"]
    parts: dict[str, frozenset[str]] = dict.fromkeys(PARTS, frozenset())
    if subject.trained:  # a bundle does not name its images
        parts = {"holdout": subject.trained.holdout_files, "validation": subject.trained.validation_files}
    for part in PARTS if split is None else [split] if split in PARTS else []:
        found = [image for image in pooled if image.key in parts[part]]
        if found or split:
            _check_part(subject, data, part, parts[part], found)
            return Source(data, found, part, PARTS[part].format(len(found)), seen=False)
    if any(image.key in files for files in parts.values() for image in pooled) or _was_trained_on(subject, data):
        text = f"all {len(images)} images, including those of training: the figures flatter the network"
        return Source(data, images, "all", text, seen=True)
    text = f"all {len(images)} images; it is not known whether the model was trained on any of them"
    return Source(data, images, "all", text, seen=None)


def _check_part(
    subject: Subject, data: Path, part: str, files: Collection[str], found: Sequence[LabelledImage]
) -> None:
    if subject.kind == "bundle":
        raise UsageError(f"{subject.path}: a bundle does not name the held-out images; evaluate the run instead")
    if not files:
        raise UsageError(f"{subject.path}: the run has been trained without a hold-out; use --split validation")
    if not found:
        raise DataError(f"{data}: found none of the {part} images of {subject.path}; name its training data")
    if len({image.label for image in found}) < 2:
        raise DataError(f"{data}: found {part} images of one class only; name the training data of {subject.path}")


def evaluate(
    subject: Subject, source: Source, with_shift: bool, with_faithfulness: bool, step: Callable[[str], None],
    masks: Path | None = None,
) -> Evaluation:  # fmt: skip
    """Run a model over images and measure it.

    Parameters
    ----------
    with_shift
        Whether to measure the proxies for another hospital, which runs the model on each perturbation of the images.
    with_faithfulness
        Whether to measure the heatmaps, which runs the model once more on each image, and often on a sample.
    step
        Called with the name of each step.
    masks
        Folder of lung masks of the data set, with which the place of the evidence is measured.

    Raises
    ------
    DataError
        If an image or a mask cannot be read, or a logit is not finite.
    """
    lungs = _read_masks(masks, source, subject.input.height) if masks else None
    step(f"reading {len(source.images)} images")
    pixels = read_pixels(source.images, subject.input.height, subject.input.width)
    step("running the model")
    outputs = subject.run(pixels)
    if not np.isfinite(outputs.logit).all():
        raise DataError(f"{subject.path}: found logits that are not finite; train or export the model again")
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
    shift = faithfulness = evidence = None
    if with_shift:
        threshold, temperature = subject.operating_points[0].threshold, subject.temperature
        shift = measure_shift(
            lambda x: outputs.logit if x is pixels else subject.run(x).logit,  # known for the original images
            source.images, pixels, threshold, temperature, lambda name: step(f"change of hospital: {name}"),
        )  # fmt: skip
    if with_faithfulness:
        faithfulness = measure_faithfulness(subject, pixels, cases, outputs.heatmap, step)
    if lungs:
        step("evidence in the lungs")
        evidence = measure_evidence(subject, pixels, cases, outputs, lungs)
    bins = tuple(reliability(cases))
    return Evaluation(
        subject, source, cases, outputs.heatmap, scores, points, bins, familiar, shift, faithfulness, evidence
    )


def _read_masks(folder: Path, source: Source, size: int) -> LungMasks:
    """Read the masks of the images of an evaluation, before the model runs."""
    masks = read_masks(find_masks(folder, read_dataset(source.data)), source.images, size)
    if not masks.known.any():
        raise DataError(
            f"{folder}: found no mask of the {len(source.images)} images to evaluate, expected some; name the masks of "
            "these images with --masks, or leave it out"
        )
    return masks


def _at_point(cases: Cases, point: OperatingPoint) -> AtPoint:
    at, triage = point.threshold, None
    if point.rule_out is not None:
        triage = triage_metrics(cases, point)
        cases = cases.only((cases.probability < point.rule_out) | (cases.probability >= at))
    return AtPoint(point, decision_metrics(cases, at), classification_report(cases, at), confusion(cases, at), triage)


def _was_trained_on(subject: Subject, data: Path) -> bool:
    """Whether the train and val images of `data` are exactly those that the model was trained on."""
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
        "worst_calibration": shift.worst_calibration.name,
        "proxies": [asdict(proxy) for proxy in shift.proxies],
        "clusters": [asdict(cluster) for cluster in shift.clusters],
    }


def _point_dict(at: AtPoint) -> dict[str, Any]:
    record = asdict(at)
    return record.pop("point") | record


def _faithfulness_dict(found: Faithfulness) -> dict[str, Any]:
    """All fields, with curves averaged over the images."""
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

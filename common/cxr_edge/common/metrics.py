"""Metrics of a classifier on labelled images, with bootstrap intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.statistics import (
    BINS,
    Floats,
    Labels,
    calibration_error,
    equal_width_bins,
    roc_auc,
    weighted_calibration_error,
)
from cxr_edge.runtime.bundles.bundle import OperatingPoint

Weights = npt.NDArray[np.float64]
#: (R, N) weights of the images -> figures by name, (R,) each.
Weighted = Callable[[Weights], Mapping[str, Floats]]

RESAMPLES = 1000
LEVEL = 0.95
#: Resamples that are computed at a time; limits the memory of the weights.
_CHUNK = 100


@dataclass(frozen=True)
class Cases:
    """The output of a network for N labelled images.

    Attributes
    ----------
    labels
        (N,) int: 0 normal, 1 pneumonia.
    logit
        (N,) float. It is used for ranks, because probabilities near 1 are equal in float32.
    probability
        (N,) float in [0, 1], after temperature scaling.
    patients
        (N,) str: the patient of each image.
    """

    labels: Labels
    logit: Floats
    probability: Floats
    patients: npt.NDArray[np.str_]

    def only(self, kept: npt.NDArray[np.bool_]) -> Cases:
        """The cases where `kept`, (N,) bool, is true."""
        return Cases(self.labels[kept], self.logit[kept], self.probability[kept], self.patients[kept])


@dataclass(frozen=True)
class Estimate:
    """A figure and its percentile interval; None if undefined, such as precision without positive decisions."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Triage:
    """The figures of a three-way operating point.

    Attributes
    ----------
    unsure
        Share of the images that are neither ruled out nor ruled in.
    missed
        Share of pneumonia among the images that are ruled out.
    false_alarms
        Share of normal images among those that are ruled in.
    """

    unsure: Estimate
    missed: Estimate
    false_alarms: Estimate


@dataclass(frozen=True)
class Confusion:
    """Number of decisions at a threshold by truth; positive is pneumonia."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose probability lies in [`low`, `high`); the last bin includes 1.

    Attributes
    ----------
    images
        Number of images; if 0, `said` and `found` are None.
    said, found
        Mean probability, and share of pneumonia.
    """

    low: float
    high: float
    images: int
    said: float | None
    found: float | None


def confusion(cases: Cases, threshold: float) -> Confusion:
    """Count right and wrong decisions; there may be none at all."""
    decided = cases.probability >= threshold
    counts = (np.sum((cases.labels == label) & (decided == bool(call))) for label in (0, 1) for call in (0, 1))
    return Confusion(*map(int, counts))


def score_metrics(cases: Cases, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """`roc_auc`, `pr_auc` (average precision), `brier` (Brier 1950), `ece` and `ece_equal_mass`: no threshold needed.

    The labels must have both classes. Intervals as in `decision_metrics`.
    """
    from sklearn.metrics import average_precision_score, brier_score_loss

    labels, probability = cases.labels, cases.probability
    values = {
        "roc_auc": roc_auc(labels, cases.logit),
        "pr_auc": float(average_precision_score(labels, cases.logit)),
        "brier": float(brier_score_loss(labels, probability)),
        "ece": calibration_error(labels, probability),
        "ece_equal_mass": calibration_error(labels, probability, rank_index(probability)),
    }
    return _estimates(values, lambda weights: _weighted_scores(cases, weights), cases.patients, resamples, seed)


def decision_metrics(cases: Cases, threshold: float, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """`accuracy`, `precision`, `sensitivity`, `specificity` and `f1` of deciding pneumonia if probability ≥ threshold.

    Intervals are 95 % percentiles of a bootstrap over patients (Efron 1979; clusters as in Field and Welsh 2007).
    Images of one patient resemble each other, and a bootstrap over images would count each as new evidence.
    """
    labels, decided = cases.labels, (cases.probability >= threshold).astype(np.int64)
    return _estimates_of(lambda weights: _weighted_decisions(labels, decided, weights), cases.patients, resamples, seed)


def classification_report(
    cases: Cases, threshold: float, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """`precision`, `recall` and `f1` of each class, and their mean over the classes as `macro average`.

    Intervals as in `decision_metrics`.
    """
    labels, decided = cases.labels, (cases.probability >= threshold).astype(np.int64)

    normal, pneumonia = partial(_class_figures, 1 - labels, 1 - decided), partial(_class_figures, labels, decided)

    def macro(weights: Weights) -> dict[str, Floats]:
        one, other = normal(weights), pneumonia(weights)
        return {name: (one[name] + other[name]) / 2 for name in one}

    rows: dict[str, Weighted] = {CLASSES[0]: normal, CLASSES[1]: pneumonia, "macro average": macro}
    return {row: _estimates_of(weighted, cases.patients, resamples, seed) for row, weighted in rows.items()}


def mean_over_images(
    values: Floats, patients: npt.NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of (N,) values, one per image; interval as in `decision_metrics`. Undefined if N is 0."""
    if not len(values):
        return Estimate(None, None, None)
    means = _estimates_of(lambda w: {"mean": w @ values / w.sum(axis=1)}, patients, resamples, seed)
    return means["mean"]


def calibration(cases: Cases, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Calibration error with bins of equal width (`ece` of `score_metrics`); interval as in `decision_metrics`."""
    index = equal_width_bins(cases.probability)

    def weighted(weights: Weights) -> dict[str, Floats]:
        return {"ece": weighted_calibration_error(cases.labels, cases.probability, index, weights)}

    return _estimates_of(weighted, cases.patients, resamples, seed)["ece"]


def triage_metrics(cases: Cases, point: OperatingPoint, resamples: int = RESAMPLES, seed: int = 0) -> Triage:
    """The figures of a three-way operating point; intervals as in `decision_metrics`."""
    answer, top = point.answer(cases.probability), len(point.thresholds)

    def share(values: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Estimate:
        return mean_over_images(values[among].astype(float), cases.patients[among], resamples, seed)

    sick, unsure = cases.labels == 1, (answer > 0) & (answer < top)
    return Triage(share(unsure, answer >= 0), share(sick, answer == 0), share(~sick, answer == top))


def rank_index(probability: Floats) -> npt.NDArray[np.int64]:
    """Bin of each image, of `BINS` bins with about the same number of images: (N,) int in [0, BINS).

    The calibration error over these bins depends less on a few images between the extremes (Nguyen and O'Connor 2015).
    """
    ranks = np.argsort(np.argsort(probability, kind="stable"), kind="stable")
    return ranks * BINS // len(ranks)


def reliability(cases: Cases) -> list[ReliabilityBin]:
    """The `BINS` bins of the reliability diagram, of equal width, ascending."""
    index = equal_width_bins(cases.probability)
    bins = []
    for number in range(BINS):
        inside = index == number
        said, found = (float(v[inside].mean()) if inside.any() else None for v in (cases.probability, cases.labels))
        bins.append(ReliabilityBin(number / BINS, (number + 1) / BINS, int(inside.sum()), said, found))
    return bins


def patient_weights(patients: npt.NDArray[np.str_], resamples: int, seed: int) -> Iterator[Weights]:
    """How often each image occurs in each resample of patients.

    Yields
    ------
    (R, N) float64 ≥ 0, for a part of the resamples each time. All images of a patient have the same weight.
    """
    names, patient_of_image = np.unique(patients, return_inverse=True)
    random = np.random.default_rng(seed)
    if not len(names):  # for example, no image was decided
        yield np.zeros((resamples, 0))
        return
    equal = np.full(len(names), 1 / len(names))
    for start in range(0, resamples, _CHUNK):
        counts = random.multinomial(len(names), equal, size=min(_CHUNK, resamples - start))
        yield counts[:, patient_of_image].astype(np.float64)


def _estimates(
    values: Mapping[str, float], weighted: Weighted, patients: npt.NDArray[np.str_], resamples: int, seed: int
) -> dict[str, Estimate]:
    """Give each value the interval of its weighted form over all resamples."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without a class is left out
        parts = [weighted(weights) for weights in patient_weights(patients, resamples, seed)]
    return {name: _estimate(value, np.concatenate([part[name] for part in parts])) for name, value in values.items()}


def _estimates_of(weighted: Weighted, patients: npt.NDArray[np.str_], resamples: int, seed: int) -> dict[str, Estimate]:
    """`_estimates` of values that are computed by the weighted form with all weights 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: float(value[0]) for name, value in weighted(np.ones((1, len(patients)))).items()}
    return _estimates(values, weighted, patients, resamples, seed)


def _estimate(value: float, resampled: Floats) -> Estimate:
    defined = resampled[np.isfinite(resampled)]
    if math.isnan(value) or not defined.size:
        return Estimate(None if math.isnan(value) else value, None, None)
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, float(low), float(high))


def _weighted_decisions(labels: Labels, decided: Labels, weights: Weights) -> dict[str, Floats]:
    """`decision_metrics` for (R, N) weights: (R,) each."""
    true_positive, false_positive = weights @ (labels * decided), weights @ ((1 - labels) * decided)
    sick, healthy = weights @ labels, weights @ (1 - labels)
    return {
        "accuracy": (true_positive + healthy - false_positive) / (sick + healthy),
        "precision": true_positive / (true_positive + false_positive),
        "sensitivity": true_positive / sick,
        "specificity": 1 - false_positive / healthy,
        "f1": 2 * true_positive / (sick + true_positive + false_positive),
    }


def _class_figures(labels: Labels, decided: Labels, weights: Weights) -> dict[str, Floats]:
    """Precision, recall and F1 of class 1: (R,) each."""
    figures = _weighted_decisions(labels, decided, weights)
    return {"precision": figures["precision"], "recall": figures["sensitivity"], "f1": figures["f1"]}


def _weighted_scores(cases: Cases, weights: Weights) -> dict[str, Floats]:
    """`score_metrics` for (R, N) weights: (R,) each."""
    labels, probability = cases.labels, cases.probability.astype(np.float64)
    order = np.argsort(cases.logit, kind="stable")
    ties = np.flatnonzero(np.diff(cases.logit[order], prepend=-np.inf))
    sick = np.add.reduceat((weights * labels)[:, order], ties, axis=1)
    healthy = np.add.reduceat((weights * (1 - labels))[:, order], ties, axis=1)
    return {
        "roc_auc": _roc_auc(sick, healthy),
        "pr_auc": _average_precision(sick, healthy),
        "brier": weights @ (probability - labels) ** 2 / weights.sum(axis=1),
        "ece": weighted_calibration_error(labels, probability, equal_width_bins(probability), weights),
        "ece_equal_mass": weighted_calibration_error(labels, probability, rank_index(probability), weights),
    }


def _roc_auc(sick: Floats, healthy: Floats) -> Floats:
    """Share of correctly ordered pairs, ties count half (Mann-Whitney), for (R, scores ascending) weights: (R,)."""
    below = healthy.cumsum(axis=1) - healthy / 2
    return np.asarray((sick * below).sum(axis=1) / (sick.sum(axis=1) * healthy.sum(axis=1)))


def _average_precision(sick: Floats, healthy: Floats) -> Floats:
    """Precision over the steps of recall, for (R, scores ascending) weights: (R,)."""
    found = sick[:, ::-1].cumsum(axis=1)
    called = found + healthy[:, ::-1].cumsum(axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return np.asarray((sick[:, ::-1] * precision).sum(axis=1) / sick.sum(axis=1))

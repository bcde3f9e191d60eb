"""Differences between an exported file and the trained network, measured on image files of a data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage
from cxr_edge.common.statistics import Floats, Labels, calibration_error, dice, rank_correlations, roc_auc
from cxr_edge.export.verification.paired import brier, delong, mcnemar
from cxr_edge.runtime.bundles.bundle import Manifest, ModelFile, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.engines.base import OUTPUTS
from cxr_edge.runtime.errors import DataError, ImageError
from cxr_edge.runtime.explanation.lungs import EMPTY_LOGIT, LUNG
from cxr_edge.runtime.prediction import kind_of
from cxr_edge.runtime.predictor import Predictor

RESAMPLES = 1000
TOP_SHARE = 0.2


@dataclass(frozen=True)
class Flip:
    """One image that is decided differently.

    Attributes
    ----------
    row
        Its index among the verified images.
    reference, file
        Its probability by the trained network and by the file, in [0, 1].
    thresholds
        Operating point -> threshold (of two crossed ones the upper), where the answers differ.
    """

    row: int
    reference: float
    file: float
    thresholds: dict[str, float]


@dataclass(frozen=True)
class Parity:
    """Differences between one file and the trained network on labelled images.

    Attributes
    ----------
    logit_max
        Largest |Δlogit|. Like the values of novelty and heatmap below, it is None if the file lacks the output.
    probability_max, probability_p99
        Largest and 99th percentile of |Δprobability|.
    flips, mcnemar_p
        Operating point -> number of images decided differently; p-value of equal error rates.
    auc, auc_delta, auc_interval, delong_p
        AUC of the file; the difference, file minus network; its 95 % interval by a paired percentile bootstrap over
        images; the p-value of equal AUCs. All use logits, because probabilities near 1 tie in float32.
    sensitivity_delta, specificity_delta
        At the default operating point, file minus network.
    ece, ece_delta, brier, brier_delta
        Expected calibration error and Brier score of the file, and the difference, file minus network. Lower is better.
    calibration_images
        Number of radiographs that set the int8 ranges of the bundle.
    lungs_dice, lungs_max
        Mean over images of the Dice coefficient (Dice 1945) of the tiles of probability ≥ 0.5, in [0, 1]; largest
        |Δprobability| of a tile.
    novelty_flips
        Number of images that are in distribution for one but not for the other.
    unlike_differences
        Number of images for which the two name different kinds, or only one names a kind; None without named kinds.
    heatmap_rank_correlation
        Median over images of Spearman's rho of the heatmap's cells.
    heatmap_iou
        Median over images of the overlap (intersection over union) of the 20 % hottest cells.
    """

    file: ModelFile
    backend: str
    images: int
    logit_max: float | None
    probability_max: float
    probability_p99: float
    flips: dict[str, int]
    mcnemar_p: dict[str, float]
    auc: float
    auc_delta: float
    auc_interval: tuple[float, float]
    delong_p: float
    sensitivity_delta: float
    specificity_delta: float
    ece: float
    ece_delta: float
    brier: float
    brier_delta: float
    novelty_flips: int | None
    unlike_differences: int | None
    heatmap_rank_correlation: float | None
    heatmap_iou: float | None
    calibration_images: int
    lungs_dice: float | None = None
    lungs_max: float | None = None

    @property
    def flip_rate(self) -> float:
        """Share of images decided differently, at the worst operating point."""
        return max(self.flips.values()) / self.images


def run_file(predictor: Predictor, images: Sequence[LabelledImage], tick: Callable[[], None]) -> Outputs:
    """Run a file on image files, with the runtime's decoding and resizing; calls `tick` for each image."""
    predictions = []
    for result in predictor.predict_many(image.path for image in images):
        if isinstance(result, ImageError):
            raise DataError(f"{result}; repair the image or remove it from the data set")
        predictions.append(result)
        tick()
    beyond = [p.beyond for p in predictions if p.beyond is not None]
    lungs = [p.lungs for p in predictions if p.lungs is not None]
    return Outputs(
        np.array([p.probability for p in predictions], np.float32),
        np.array([p.logit for p in predictions], np.float32),
        np.stack([p.heatmap for p in predictions]),
        np.array([p.novelty for p in predictions], np.float32),
        unlike=np.stack(beyond) if beyond else None,
        lungs=np.stack(lungs) if lungs else None,
    )


def compare(
    file: ModelFile,
    backend: str,
    outputs: Outputs,
    reference: Outputs,
    labels: Labels,
    manifest: Manifest,
    given: Collection[str] = OUTPUTS,
) -> Parity:
    """Compare the outputs of a file with those of the reference.

    Parameters
    ----------
    given
        Names of the outputs that the file has.
    """
    points = manifest.operating_points
    change = np.abs(outputs.probability - reference.probability)
    area = roc_auc(labels, outputs.logit)
    ece, squared = calibration_error(labels, outputs.probability), brier(labels, outputs.probability)
    decided, expected = (each.probability >= points[0].threshold for each in (outputs, reference))
    sick, healthy = labels == 1, labels == 0
    return Parity(
        file=file,
        backend=backend,
        images=len(labels),
        logit_max=_largest(np.abs(outputs.logit - reference.logit)) if "logit" in given else None,
        probability_max=_largest(change),
        probability_p99=float(np.quantile(change, 0.99)),
        flips={point.name: count_flips(outputs, reference, point) for point in points},
        mcnemar_p={point.name: _mcnemar_at(point, outputs, reference, labels) for point in points},
        auc=area,
        auc_delta=area - roc_auc(labels, reference.logit),
        auc_interval=auc_delta_interval(labels, outputs.logit, reference.logit),
        delong_p=delong(labels, outputs.logit, reference.logit),
        sensitivity_delta=float(decided[sick].mean() - expected[sick].mean()),
        specificity_delta=float(expected[healthy].mean() - decided[healthy].mean()),
        ece=ece,
        ece_delta=ece - calibration_error(labels, reference.probability),
        brier=squared,
        brier_delta=squared - brier(labels, reference.probability),
        novelty_flips=_novelty_flips(outputs, reference, manifest.novelty_threshold) if "novelty" in given else None,
        unlike_differences=_unlike_differences(outputs, reference, manifest),
        heatmap_rank_correlation=_median_agreement(rank_correlation, outputs, reference, given),
        heatmap_iou=_median_agreement(top_overlap, outputs, reference, given),
        calibration_images=manifest.calibration.get("images", 0),
        **_compare_lungs(outputs.lungs, reference.lungs),
    )


def count_flips(outputs: Outputs, reference: Outputs, point: OperatingPoint) -> int:
    """Number of images with different answers at an operating point; NaN always counts as a flip."""
    differ = point.answer(outputs.probability) != point.answer(reference.probability)
    return int(np.sum(differ | np.isnan(outputs.probability)))


def find_flips(outputs: Outputs, reference: Outputs, points: Sequence[OperatingPoint]) -> list[Flip]:
    """Images with different answers at any operating point, the largest change first; NaN always differs."""
    flips = []
    for row, (mine, theirs) in enumerate(
        zip(outputs.probability.tolist(), reference.probability.tolist(), strict=True)
    ):
        crossed = {
            point.name: threshold
            for point in points
            for threshold in point.thresholds
            if np.isnan(mine) or (mine >= threshold) != (theirs >= threshold)
        }
        if crossed:
            flips.append(Flip(row, theirs, mine, crossed))
    return sorted(flips, key=lambda flip: -abs(flip.file - flip.reference))


def _mcnemar_at(point: OperatingPoint, outputs: Outputs, reference: Outputs, labels: Labels) -> float:
    """McNemar's test at an operating point; an answer is right if it is the class, so `UNSURE` is not."""
    right = labels * len(point.thresholds)
    return mcnemar(right, point.answer(outputs.probability), point.answer(reference.probability))


def _novelty_flips(outputs: Outputs, reference: Outputs, threshold: float) -> int:
    return int(np.sum((outputs.novelty <= threshold) != (reference.novelty <= threshold)))


def _unlike_differences(outputs: Outputs, reference: Outputs, manifest: Manifest) -> int | None:
    if outputs.unlike is None or reference.unlike is None:
        return None
    named = _kinds(outputs.unlike, outputs.novelty, manifest)
    return sum(a != b for a, b in zip(named, _kinds(reference.unlike, reference.novelty, manifest), strict=True))


def _kinds(unlike: Floats, distances: Floats, manifest: Manifest) -> list[str | None]:
    """The kind of outlier that each image resembles; None for those in distribution."""
    return [
        None if distance <= manifest.novelty_threshold else kind_of(beyond, distance, manifest.novelty_kinds)
        for beyond, distance in zip(unlike, distances.tolist(), strict=True)
    ]


def _median_agreement(
    agreement: Callable[[Floats, Floats], Floats], outputs: Outputs, reference: Outputs, given: Collection[str]
) -> float | None:
    return float(np.median(agreement(outputs.heatmap, reference.heatmap))) if "heatmap" in given else None


def _compare_lungs(lungs: Floats | None, reference: Floats | None) -> dict[str, float]:
    """The fields of `Parity` about the lungs; empty if one of both lacks them."""
    if lungs is None or reference is None:
        return {}
    return {
        "lungs_dice": float(dice(lungs >= LUNG, reference >= LUNG).mean()),
        "lungs_max": _largest(np.abs(lungs - reference)),
    }


def auc_delta_interval(labels: Labels, score: Floats, reference: Floats) -> tuple[float, float]:
    """95 % interval of the difference of two AUCs on the same images by a paired percentile bootstrap (Efron 1979)."""
    random = np.random.default_rng(0)
    deltas = []
    for _ in range(RESAMPLES):
        rows = random.integers(0, len(labels), len(labels))
        deltas.append(roc_auc(labels[rows], score[rows]) - roc_auc(labels[rows], reference[rows]))
    low, high = np.nanquantile(deltas, (0.025, 0.975))
    return float(low), float(high)


def rank_correlation(maps: Floats, reference: Floats) -> Floats:
    """Spearman's rho of each pair of heatmaps: (N, h, w) twice -> (N,) in [-1, 1].

    Two empty maps give 1. An empty or flat map and another one give 0.
    """
    correlation = np.nan_to_num(rank_correlations(maps, reference))
    return np.where(_both_empty(maps, reference), 1.0, correlation)


def top_overlap(maps: Floats, reference: Floats) -> Floats:
    """Intersection over union of the hottest fifth of the cells: (N, h, w) twice -> (N,) in [0, 1]."""
    flat, other = (m.reshape(len(m), -1) for m in (maps, reference))
    count = max(1, round(TOP_SHARE * flat.shape[1]))
    hottest, expected = (_hottest(m, count) for m in (flat, other))
    overlap = (hottest & expected).sum(axis=1) / np.maximum((hottest | expected).sum(axis=1), 1)
    return np.where(_both_empty(maps, reference), 1.0, overlap)


def _hottest(flat: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Mask of the `count` largest cells of each row; cells of value 0 never count."""
    mask = np.zeros(flat.shape, bool)
    np.put_along_axis(mask, np.argsort(-flat, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask & (flat > 0)


def _both_empty(maps: Floats, reference: Floats) -> npt.NDArray[np.bool_]:
    peaks: Iterable[Floats] = (m.reshape(len(m), -1).max(axis=1) for m in (maps, reference))
    first, second = peaks
    return np.asarray((first < EMPTY_LOGIT) & (second < EMPTY_LOGIT))


def _largest(values: Floats) -> float:
    """Maximum; NaN counts as infinity."""
    return float(np.nan_to_num(values, nan=np.inf).max())

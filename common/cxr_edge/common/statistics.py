"""Statistics for training and verification: probability, AUC, calibration error, rank correlation, Dice coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

#: Number of bins of the reliability diagram and the calibration error.
BINS = 15


def to_probability(logit: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """sigmoid(logit / temperature), as in the deployment graph: (N,) float32 in [0, 1]."""
    from scipy.special import expit

    return np.asarray(expit(logit.astype(np.float64) / temperature), np.float32)


def roc_auc(labels: Labels, score: Floats) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney); NaN if a class is absent.

    Parameters
    ----------
    labels, score
        (N,) int in {0, 1}, and (N,) float: higher for 1.
    """
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)[labels == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def equal_width_bins(probability: Floats) -> npt.NDArray[np.int64]:
    """Bin of each probability in [0, 1], of `BINS` bins with equal width: (N,) int in [0, BINS); NaN counts as 0."""
    return np.minimum((np.nan_to_num(probability) * BINS).astype(np.int64), BINS - 1)


def calibration_error(labels: Labels, probability: Floats, bins: npt.NDArray[np.int64] | None = None) -> float:
    """Expected calibration error: mean over the images of |mean probability - share of pneumonia| in their bin.

    Parameters
    ----------
    bins
        (N,) int: the bin of each image, by default of equal width (Naeini et al. 2015).
    """
    index = equal_width_bins(probability) if bins is None else bins
    return float(weighted_calibration_error(labels, probability, index, np.ones((1, len(labels))))[0])


def weighted_calibration_error(
    labels: Labels, probability: Floats, bins: npt.NDArray[np.int64], weights: Floats
) -> Floats:
    """`calibration_error` for (R, N) weights of the images: (R,)."""
    gap = np.zeros((len(labels), BINS))
    gap[np.arange(len(labels)), bins] = probability - labels
    return np.asarray(np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1))


def rank_correlations(maps: Floats, others: Floats) -> Floats:
    """Spearman's rho over the cells of two sets of maps, (N, h, w): (N,) in [-1, 1], NaN where a map is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(each.reshape(len(each), -1), axis=1) for each in (maps, others)]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    norm = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), norm, out=np.full(len(norm), np.nan), where=norm > 0)


def dice(masks: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> Floats:
    """Dice coefficient (Dice 1945) of each pair of masks: (N, h, w) twice -> (N,) in [0, 1]. Two empty masks give 1."""
    both = 2 * (masks & reference).sum(axis=(1, 2))
    either = masks.sum(axis=(1, 2)) + reference.sum(axis=(1, 2))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))

"""Paired statistics of two classifiers on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import Floats, Labels


def mcnemar(labels: Labels, decided: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """P-value of the hypothesis that two classifiers have equal error rates: McNemar's exact test (1947).

    Parameters
    ----------
    decided, expected
        (N,) answers of each classifier, right where they equal the label.
    """
    from scipy.stats import binomtest

    right, other = decided == labels, expected == labels
    better, worse = int(np.sum(right & ~other)), int(np.sum(other & ~right))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def delong(labels: Labels, score: Floats, reference: Floats) -> float:
    """P-value of the hypothesis that two scores have equal AUCs (DeLong et al. 1988), by ranks (Sun and Xu 2014).

    It is NaN if a class has fewer than two images, and 1 if the AUCs are equal.
    """
    from scipy.stats import norm, rankdata

    scores = np.stack([score, reference]).astype(np.float64)
    sick, healthy = scores[:, labels == 1], scores[:, labels == 0]
    m, n = sick.shape[1], healthy.shape[1]
    if min(m, n) < 2:
        return float("nan")
    ranks = rankdata(np.hstack([sick, healthy]), axis=1)
    # Structural components: the share of healthy images below each sick one, and of sick ones above each healthy one.
    above = (ranks[:, :m] - rankdata(sick, axis=1)) / n
    below = 1 - (ranks[:, m:] - rankdata(healthy, axis=1)) / m
    difference = above[0].mean() - above[1].mean()
    if difference == 0:
        return 1.0
    spread = np.var(above[0] - above[1], ddof=1) / m + np.var(below[0] - below[1], ddof=1) / n
    return float(2 * norm.sf(abs(difference) / np.sqrt(spread)))


def brier(labels: Labels, probability: Floats) -> float:
    """Mean squared error of the probability (Brier 1950)."""
    return float(np.mean(np.square(probability - labels)))

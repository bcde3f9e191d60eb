"""The threshold of a site from labelled images: logistic regression around the shipped calibration."""

from __future__ import annotations

import numpy as np

from cxr_edge.common.statistics import roc_auc
from cxr_edge.runtime.errors import CalibrationError
from cxr_edge.sites.calibration.fit import Fit, Floats, Labels, Wish

#: Fewest images of each class.
FEWEST = 30
#: With fewer images the slope stays that of the bundle.
FEWEST_FOR_SLOPE = 200
#: Standard deviations of bias and log-slope that are expected of sites, in log-odds. They keep the fit finite when no
#: image is on the wrong side.
BIAS, LOG_SLOPE = 2.0, 0.3
#: Least area under the ROC curve. Below, no threshold makes the answers useful.
LEAST_AUC = 0.8


def fit_labelled(log_odds: Floats, labels: Labels, wish: Wish) -> Fit:
    """Fit slope and bias of the log-odds (Platt 1999), with a normal prior around the shipped ones.

    Parameters
    ----------
    log_odds, labels
        (N,) float, and (N,) int: 0 normal, 1 pneumonia.

    Returns
    -------
    The threshold is where the probability is 0.5, or lower if the sensitivity asked for needs it. The images are
    weighted so that the share of pneumonia lies in the range of the prevalence, if one is given.

    Raises
    ------
    CalibrationError
        If there are too few images of a class, or the network does not tell the classes apart.
    """
    check_labels(labels)
    if (auc := roc_auc(labels, log_odds)) < LEAST_AUC:
        raise CalibrationError(
            f"found an AUC of {auc:.2f} on the labelled images, expected {LEAST_AUC} at least: the network does not "
            "tell the classes apart here, and no threshold mends that; check the labels, the projection and the age "
            "of the patients, or train a network for this site"
        )
    return fit_weighted(log_odds, labels, wish)


def check_labels(labels: Labels) -> None:
    """Refuse too few images of a class."""
    for name, count in zip(("NORMAL", "PNEUMONIA"), np.bincount(labels, minlength=2), strict=True):
        if count < FEWEST:
            raise CalibrationError(f"found {count} labelled images of {name}, expected {FEWEST} at least; label more")


def fit_weighted(log_odds: Floats, labels: Labels, wish: Wish) -> Fit:
    """`fit_labelled` without its checks, for resampled images of both classes."""
    from scipy.optimize import minimize

    share = float(labels.mean())
    prevalence = float(np.clip(share, *wish.prevalence)) if wish.prevalence else share
    weights = np.where(labels == 1, prevalence / share, (1 - prevalence) / (1 - share))
    with_slope = len(labels) >= FEWEST_FOR_SLOPE

    def loss(parameters: Floats) -> float:
        log_slope, bias = parameters
        fitted = np.exp(log_slope) * log_odds + bias
        wrong = np.logaddexp(0, np.where(labels == 1, -fitted, fitted))
        return float(weights @ wrong + 0.5 * ((log_slope / LOG_SLOPE) ** 2 + (bias / BIAS) ** 2))

    limits = [(-1.5, 1.5) if with_slope else (0, 0), (-20, 20)]
    log_slope, bias = map(float, minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=limits).x)
    slope = float(np.exp(log_slope))
    threshold = min(-bias / slope, _floor(log_odds[labels == 1], wish.sensitivity))
    return Fit("labels: slope and bias" if with_slope else "labels: bias", threshold, slope, bias, prevalence)


def rates(log_odds: Floats, labels: Labels, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity at a threshold."""
    positive = log_odds >= threshold
    return float(positive[labels == 1].mean()), float(1 - positive[labels == 0].mean())


def _floor(positives: Floats, sensitivity: float | None) -> float:
    """The highest threshold with this sensitivity, with a margin of half the gap below it."""
    if sensitivity is None:
        return np.inf
    ordered = np.sort(positives)
    row = int(np.floor((1 - sensitivity) * len(ordered) + 1e-9))
    return float(ordered[[max(row - 1, 0), row]].mean()) if row else float(ordered[0]) - 0.1

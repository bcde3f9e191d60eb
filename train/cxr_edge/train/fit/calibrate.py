"""Calibration: temperature and thresholds from the logits of validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import Floats, Labels
from cxr_edge.runtime.bundles.bundle import OperatingPoint

#: Range in which the temperature is searched.
TEMPERATURES = (0.1, 10.0)
#: Least sensitivity and specificity of `balanced`, if the network can reach both.
BALANCED = (0.96, 0.90)
#: Least sensitivity of `screening`, and least specificity of `confirm`.
TARGET = 0.98
#: A threshold that no probability reaches.
_NEVER = 1 + 1e-6


def to_probability(logit: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """sigmoid(logit / temperature), as in the deployment graph: (N,) float32 in [0, 1]."""
    from scipy.special import expit

    return np.asarray(expit(logit.astype(np.float64) / temperature), np.float32)


def fit_temperature(labels: Labels, logit: Floats) -> float:
    """Fit the temperature with the least negative log likelihood (Guo et al. 2017).

    Parameters
    ----------
    labels
        (N,) int: 0 normal, 1 pneumonia.
    logit
        (N,) float, of images that the network was not trained on.

    Returns
    -------
    A value within `TEMPERATURES`; 1 if no logit has the wrong sign, because the likelihood then has no maximum.
    """
    from scipy.optimize import minimize_scalar

    signed = np.where(labels == 1, logit, -logit).astype(np.float64)
    if (signed > 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).mean())

    # Logarithmic, because 2 and 1/2 are equally far from a temperature of 1.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def operating_points(labels: Labels, *probabilities: Floats) -> tuple[OperatingPoint, ...]:
    """Choose the operating points of a model: `balanced` (the default), `screening` and `confirm`.

    Each is chosen on the worst case over original and perturbed validation images. A threshold chosen on original
    images alone does not hold in another hospital: measured, specificity fell from 0.99 to 0.34 under mild noise.

    Parameters
    ----------
    labels
        (N,) int, with both classes.
    probabilities
        One (N,) float in [0, 1] for each version of the images, after temperature scaling: original, then perturbed.
    """
    thresholds, sensitivity, specificity = _sweep(labels, probabilities)
    least_sensitive, least_specific = sensitivity.min(axis=0), specificity.min(axis=0)

    def sensitive(least: float) -> tuple[int, str]:
        return int(np.flatnonzero(least_sensitive >= least)[0]), f"highest threshold with sensitivity ≥ {least:.0%}"

    def specific(least: float) -> tuple[int, str]:
        return int(np.flatnonzero(least_specific >= least)[-1]), f"lowest threshold with specificity ≥ {least:.0%}"

    balanced = sensitive(BALANCED[0])
    if least_specific[balanced[0]] < BALANCED[1]:  # a weak network: maximise Youden's index (1950)
        balanced = int((sensitivity + specificity).min(axis=0).argmax()), "largest sensitivity + specificity"
    found = {"balanced": balanced, "screening": sensitive(TARGET), "confirm": specific(TARGET)}
    where = "on held-out patients of train"
    if len(probabilities) > 1:
        where = f"in the worst of {len(probabilities)} versions of the images (original and perturbed) {where}"
    return tuple(
        OperatingPoint(name, _midway(thresholds, row), f"{rule} {where}") for name, (row, rule) in found.items()
    )


def _sweep(labels: Labels, probabilities: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Thresholds at which a decision changes, (T,) descending; their sensitivity and specificity, (versions, T)."""
    thresholds = np.unique(np.concatenate([*probabilities, [_NEVER]]))[::-1]
    shares = [
        [1 - np.searchsorted(np.sort(p[labels == label]), thresholds) / np.sum(labels == label) for label in (1, 0)]
        for p in probabilities
    ]
    positive, falsely_positive = np.moveaxis(np.array(shares), 1, 0)
    return thresholds, positive, 1 - falsely_positive


def _midway(thresholds: Floats, row: int) -> float:
    """The middle between this threshold and the next lower one: same decisions, with a margin on both sides."""
    return float(thresholds[row : row + 2].mean())

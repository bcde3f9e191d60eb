"""From logits of held-out patients to a temperature and the thresholds that decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import Floats, Labels
from cxr_edge.runtime.bundles.bundle import OperatingPoint

#: Temperatures that are searched.
TEMPERATURES = (0.1, 10.0)
#: What `balanced` holds, if the network can: sensitivity, and at least that specificity.
BALANCED = (0.96, 0.90)
#: What `screening` holds for sensitivity, and `confirm` for specificity.
TARGET = 0.98
#: A threshold that nothing reaches.
_NEVER = 1 + 1e-6


def to_probability(logit: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """sigmoid(logit / temperature): (N,) float32 in [0, 1], as the deployment graph gives it."""
    from scipy.special import expit

    return np.asarray(expit(logit.astype(np.float64) / temperature), np.float32)


def fit_temperature(labels: Labels, logit: Floats) -> float:
    """The temperature of least negative log likelihood (Guo et al. 2017).

    Parameters
    ----------
    labels
        (N,) int: 0 normal, 1 pneumonia.
    logit
        (N,) float, of images that the network was not trained on.

    Returns
    -------
    Within `TEMPERATURES`; 1 where no image lies on the wrong side of 0: the likelihood then grows without end as the
    temperature falls, and says nothing.
    """
    from scipy.optimize import minimize_scalar

    signed = np.where(labels == 1, logit, -logit).astype(np.float64)
    if (signed > 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).mean())

    # In the logarithm, because a temperature of 2 and one of 1/2 are equally far from none.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def operating_points(labels: Labels, *probabilities: Floats) -> tuple[OperatingPoint, ...]:
    """The thresholds that a model ships with: `balanced`, the default, `screening` and `confirm`.

    Each is chosen on the worst of the given versions of the images, because a threshold chosen on images as they are
    does not hold when the hospital changes: measured, specificity fell from 0.99 to 0.34 under mild noise.

    Parameters
    ----------
    labels
        (N,) int, both classes among them.
    probabilities
        One (N,) float in [0, 1] for each version, after temperature scaling: the images as they are, then perturbed.
    """
    thresholds, sensitivity, specificity = _sweep(labels, probabilities)
    least_sensitive, least_specific = sensitivity.min(axis=0), specificity.min(axis=0)

    def sensitive(least: float) -> tuple[int, str]:
        return int(np.flatnonzero(least_sensitive >= least)[0]), f"highest threshold with sensitivity ≥ {least:.0%}"

    balanced = sensitive(BALANCED[0])
    if least_specific[balanced[0]] < BALANCED[1]:  # a weak network; Youden (1950), in the version where it is least
        balanced = int((sensitivity + specificity).min(axis=0).argmax()), "largest sensitivity + specificity"
    found = {
        "balanced": balanced,
        "screening": sensitive(TARGET),
        "confirm": (
            int(np.flatnonzero(least_specific >= TARGET)[-1]),
            f"lowest threshold with specificity ≥ {TARGET:.0%}",
        ),
    }
    where = "on held-out patients of train"
    if len(probabilities) > 1:
        where = f"in the worst of {len(probabilities)} versions of the images (as they are, and perturbed) {where}"
    return tuple(
        OperatingPoint(name, _midway(thresholds, row), f"{rule} {where}") for name, (row, rule) in found.items()
    )


def _sweep(labels: Labels, probabilities: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Thresholds at which a decision changes, (T,) descending; sensitivity and specificity there, (versions, T)."""
    thresholds = np.unique(np.concatenate([*probabilities, [_NEVER]]))[::-1]
    shares = [
        [1 - np.searchsorted(np.sort(p[labels == label]), thresholds) / np.sum(labels == label) for label in (1, 0)]
        for p in probabilities
    ]
    positive, falsely_positive = np.moveaxis(np.array(shares), 1, 0)
    return thresholds, positive, 1 - falsely_positive


def _midway(thresholds: Floats, row: int) -> float:
    """Midway to the next lower probability: decides the same here, and leaves room on both sides."""
    return float(thresholds[row : row + 2].mean())

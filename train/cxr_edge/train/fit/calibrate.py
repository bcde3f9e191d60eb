"""Calibration: temperature and thresholds from the logits of validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import Floats, Labels
from cxr_edge.runtime.bundles.bundle import OperatingPoint

#: Range in which the temperature is searched.
TEMPERATURES = (0.1, 10.0)
#: Least sensitivity of `screening`, and least specificity of `confirm`.
TARGET = 0.98
#: A threshold that no probability reaches.
_NEVER = 1 + 1e-6


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
    """Choose the operating points of a model: `balanced` (the default), `screening`, `confirm` and `triage`.

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
    sensitive, specific = sensitivity.min(axis=0), specificity.min(axis=0)
    best = _most_balanced(sensitive, specific)
    screening = int(np.flatnonzero(sensitive >= TARGET)[0])
    confirm = int(np.flatnonzero(specific >= TARGET)[-1])
    where = _where(len(probabilities))

    def point(name: str, first: int, last: int, rule: str) -> OperatingPoint:
        return OperatingPoint(name, _midway(thresholds, first, last), f"{rule} {where}")

    rule_out = point("screening", screening, screening, f"highest threshold with sensitivity ≥ {TARGET:.0%}")
    rule_in = point("confirm", confirm, confirm, f"lowest threshold with specificity ≥ {TARGET:.0%}")
    balanced = point("balanced", int(best[0]), int(best[-1]), "highest lesser of sensitivity and specificity")
    return balanced, rule_out, rule_in, triage(rule_out, rule_in)


def triage(screening: OperatingPoint, confirm: OperatingPoint) -> OperatingPoint:
    """The three-way operating point: rule out below the lower threshold, rule in from the upper one, else unsure.

    A network that separates the classes well has its `screening` above `confirm`: each threshold between them keeps
    both promises. Then `confirm` rules out and `screening` rules in, so that both promises still hold.
    """
    lower, upper = sorted((screening, confirm), key=lambda point: point.threshold)
    rule = f"NORMAL below the threshold of {lower.name}, PNEUMONIA from that of {upper.name}, UNSURE between"
    return OperatingPoint("triage", upper.threshold, rule, rule_out=lower.threshold)


def _where(versions: int) -> str:
    """The images on which a threshold was chosen."""
    held_out = "on held-out patients of train"
    if versions == 1:
        return held_out
    return f"in the worst of {versions} versions of the images (original and perturbed) {held_out}"


def _sweep(labels: Labels, probabilities: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Thresholds at which a decision changes, (T,) descending; their sensitivity and specificity, (versions, T)."""
    thresholds = np.unique(np.concatenate([*probabilities, [_NEVER]]))[::-1]
    shares = [
        [1 - np.searchsorted(np.sort(p[labels == label]), thresholds) / np.sum(labels == label) for label in (1, 0)]
        for p in probabilities
    ]
    positive, falsely_positive = np.moveaxis(np.array(shares), 1, 0)
    return thresholds, positive, 1 - falsely_positive


def _most_balanced(sensitivity: Floats, specificity: Floats) -> npt.NDArray[np.int64]:
    """Rows with the highest lesser of both, ascending; of these, those with the highest sum."""
    lesser = np.minimum(sensitivity, specificity)
    best = np.flatnonzero(lesser == lesser.max())
    total = (sensitivity + specificity)[best]
    return best[total == total.max()]


def _midway(thresholds: Floats, first: int, last: int) -> float:
    """The middle of all thresholds from row `first` down to the row after `last`: a margin on both sides."""
    return float(thresholds[[first, min(last + 1, len(thresholds) - 1)]].mean())

"""From logits of held-out patients to a temperature and the thresholds that decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import OperatingPoint

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

#: Temperatures that are searched.
TEMPERATURES = (0.1, 10.0)
#: What `screening` holds for sensitivity, and `confirm` for specificity.
TARGET = 0.98
_WHERE = "on held-out patients of train"
#: Stands for the threshold that nothing reaches, where roc_curve says infinity, which JSON does not know.
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


def operating_points(labels: Labels, probability: Floats) -> tuple[OperatingPoint, ...]:
    """The thresholds that a model ships with: `balanced`, the default, `screening` and `confirm`.

    Parameters
    ----------
    labels
        (N,) int, both classes among them.
    probability
        (N,) float in [0, 1], after temperature scaling.
    """
    return (
        youden_point(labels, probability),
        screening_point(labels, probability),
        confirm_point(labels, probability),
    )


def youden_point(labels: Labels, probability: Floats) -> OperatingPoint:
    """The threshold of largest sensitivity + specificity (Youden 1950)."""
    sensitivity, specificity, thresholds = _sweep(labels, probability)
    best = thresholds[int(np.argmax(sensitivity + specificity))]
    return _point("balanced", best, probability, "largest sensitivity + specificity")


def screening_point(labels: Labels, probability: Floats) -> OperatingPoint:
    """The highest threshold that misses at most 2 % of the sick."""
    sensitivity, _, thresholds = _sweep(labels, probability)
    best = thresholds[sensitivity >= TARGET].max()
    return _point("screening", best, probability, f"highest threshold with sensitivity ≥ {100 * TARGET:.0f} %")


def confirm_point(labels: Labels, probability: Floats) -> OperatingPoint:
    """The lowest threshold that accuses at most 2 % of the healthy."""
    _, specificity, thresholds = _sweep(labels, probability)
    best = thresholds[specificity >= TARGET].min()
    return _point("confirm", best, probability, f"lowest threshold with specificity ≥ {100 * TARGET:.0f} %")


def _sweep(labels: Labels, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """Sensitivity, specificity and threshold wherever the decisions change, thresholds descending."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(labels, probability, drop_intermediate=False)
    return true_positive, 1 - false_positive, np.minimum(thresholds, _NEVER)


def _point(name: str, best: float, probability: Floats, rule: str) -> OperatingPoint:
    """Midway to the next lower probability: decides the same here, and leaves room on both sides."""
    below = probability[probability < best]
    threshold = (float(best) + float(below.max())) / 2 if below.size else float(best)
    return OperatingPoint(name, threshold, f"{rule} {_WHERE}")

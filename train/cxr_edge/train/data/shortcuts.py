"""Shortcuts: how well simple properties of an image predict its class without its lungs.

A network learns such a shortcut as easily as the disease, and then fails on images from elsewhere (Zech et al. 2018,
doi:10.1371/journal.pmed.1002683).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from math import sqrt

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.statistics import roc_auc
from cxr_edge.runtime.imaging.gray import Gray

#: Share of height and width on each side that counts as border.
BORDER = 0.08
#: Border pixels up to this gray level are collimation or padding, not anatomy.
NEAR_BLACK = 10
#: Cross-validation folds for all cues together; each holds whole patients.
FOLDS = 5
#: Half-width of a 95 % interval in standard errors.
Z = 1.96


@dataclass(frozen=True)
class Cues:
    """Properties of one image that do not depend on its lungs; intensities in [0, 255]."""

    file_size: float
    bytes_per_pixel: float
    aspect_ratio: float
    height: float
    mean_intensity: float
    intensity_std: float
    border_mean: float
    near_black_border: float


@dataclass(frozen=True)
class Shortcut:
    """How well one cue alone separates the classes.

    `auc` is at least 0.5, `low` and `high` are its 95 % interval. `higher_in` is the class with larger values, None if
    neither has.
    """

    cue: str
    auc: float
    low: float
    high: float
    higher_in: str | None


def measure(gray: Gray, file_size: int) -> Cues:
    """Measure one decoded radiograph: (H, W) uint8 in [0, 255]."""
    height, width = gray.shape
    top, left = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    ring = np.ones(gray.shape, np.bool_)
    ring[top:-top, left:-left] = False
    border = gray[ring]
    return Cues(
        file_size,
        file_size / gray.size,
        width / height,
        height,
        float(gray.mean()),
        float(gray.std()),
        float(border.mean()),
        float(np.mean(border <= NEAR_BLACK)),
    )


def single_cues(cues: Sequence[Cues], labels: Sequence[int], patients: Sequence[str]) -> list[Shortcut]:
    """ROC AUC of each cue, the best first. Both classes must be present."""
    classes = np.array(labels)
    # Images of one patient resemble each other, so the interval counts patients, not images.
    negatives, positives = (len({p for p, y in zip(patients, labels, strict=True) if y == label}) for label in (0, 1))
    found = []
    for name, values in zip(cue_names(), _matrix(cues).T, strict=True):
        auc = roc_auc(classes, values)
        higher_in = None if auc == 0.5 else CLASSES[int(auc > 0.5)]
        auc = max(auc, 1 - auc)
        margin = Z * _standard_error(auc, negatives, positives)
        found.append(Shortcut(name, auc, max(0.0, auc - margin), min(1.0, auc + margin), higher_in))
    return sorted(found, key=lambda shortcut: -shortcut.auc)


def cues_together(cues: Sequence[Cues], labels: Sequence[int], patients: Sequence[str]) -> float | None:
    """ROC AUC of a logistic regression on all cues, in which each patient is scored by a fit on others.

    Returns
    -------
    None if a class has too few patients for cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, groups = np.array(labels), np.array(patients)
    if min(len(set(groups[classes == label])) for label in (0, 1)) < FOLDS:
        return None
    # Stratified, because the scores of all folds are ranked together: each fold must have the same share of classes.
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(model, _matrix(cues), classes, groups=groups, cv=folds, method="decision_function")
    return roc_auc(classes, scores)


def cue_names() -> list[str]:
    """Readable names of the cues."""
    return [field.name.replace("_", " ") for field in fields(Cues)]


def _matrix(cues: Sequence[Cues]) -> npt.NDArray[np.float64]:
    """One row per image, one column per cue: (N, 8) float64."""
    return np.array([astuple(each) for each in cues], np.float64)


def _standard_error(auc: float, negatives: int, positives: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747)."""
    both_positives, both_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc)
    variance += (positives - 1) * (both_positives - auc**2) + (negatives - 1) * (both_negatives - auc**2)
    return sqrt(max(0.0, variance) / (negatives * positives))

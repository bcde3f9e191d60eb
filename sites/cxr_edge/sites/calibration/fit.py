"""What a calibration needs to know, and what it finds. All log-odds are logit / temperature of the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import Manifest
from cxr_edge.runtime.bundles.manifest import SITE

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
T = TypeVar("T")

#: Number of bootstrap samples, and the quantiles that they are reported at.
BOOTSTRAPS = 200
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Wish:
    """What the user asked for, and where the shipped threshold lies.

    Attributes
    ----------
    shipped
        Log-odds of the threshold of the shipped default operating point.
    prevalence
        Least and largest share of pneumonia at the site, if it is known.
    sensitivity
        Least sensitivity on the labelled images.
    """

    shipped: float
    prevalence: tuple[float, float] | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Fit:
    """The threshold of a site.

    Attributes
    ----------
    method
        One of `METHODS` of the manifest.
    threshold
        In log-odds.
    slope, bias
        The log-odds of pneumonia at the site are slope · log-odds + bias.
    prevalence
        Share of pneumonia for which the threshold was chosen.
    """

    method: str
    threshold: float
    slope: float
    bias: float
    prevalence: float


def shipped_threshold(manifest: Manifest) -> float:
    """Log-odds of the threshold of the first operating point that no site made."""
    point = next(point for point in manifest.operating_points if point.name != SITE)
    return to_log_odds(point.threshold)


def to_log_odds(probability: float) -> float:
    """The log-odds of a probability; finite for 0 and 1."""
    clipped = min(max(probability, 1e-7), 1 - 1e-7)
    return float(np.log(clipped / (1 - clipped)))


def bootstrap(rows: int, fit: Callable[[npt.NDArray[np.int64]], T | None], seed: int = 0) -> list[T]:
    """Fit resampled rows (Efron 1979): (rows,) int indices -> a result, or None where there is none."""
    random = np.random.default_rng(seed)
    found = (fit(random.integers(0, rows, rows)) for _ in range(BOOTSTRAPS))
    return [each for each in found if each is not None]


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of bootstrapped values."""
    low, high = np.quantile(values, INTERVAL)
    return float(low), float(high)

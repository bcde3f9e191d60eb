"""Percentiles with enough samples, and ratios with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Percentile -> number of samples that it needs; with fewer it is noise and is not reported.
NEEDED = {50: 20, 90: 64, 95: 130, 99: 662}


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Those of `p50`, `p90`, `p95` and `p99` for which there are enough samples."""
    return {f"p{p}": float(np.percentile(samples, p)) for p, needed in NEEDED.items() if len(samples) >= needed}


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of paired samples, with its 95 % bootstrap interval: `ratio`, `low`, `high`."""
    from scipy.stats import bootstrap

    ratios = np.asarray(numerator) / np.asarray(denominator)
    interval = bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return {"ratio": float(np.median(ratios)), "low": float(interval.low), "high": float(interval.high)}


def ratio_of_medians(numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]) -> dict[str, float]:
    """Ratio of the medians of two runs, with its 95 % bootstrap interval: `ratio`, `low`, `high`."""
    from scipy.stats import bootstrap

    def ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64], axis: int = -1) -> Any:
        return np.median(above, axis=axis) / np.median(below, axis=axis)

    samples = (numerator, denominator)
    interval = bootstrap(samples, ratio, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return {"ratio": float(ratio(*samples)), "low": float(interval.low), "high": float(interval.high)}

"""Percentiles with enough samples, and ratios with an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
#: Percentile -> number of samples that it needs; with fewer it is noise and is not reported.
NEEDED = {50: 20, 90: 64, 95: 130, 99: 662}


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Those of `p50`, `p90`, `p95` and `p99` for which there are enough samples."""
    return {f"p{p}": float(np.percentile(samples, p)) for p, needed in NEEDED.items() if len(samples) >= needed}


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of paired samples, with its 95 % bootstrap interval: `ratio`, `low`, `high`."""
    return _with_interval(np.median, np.asarray(numerator) / np.asarray(denominator))


def ratio_of_medians(numerator: Samples, denominator: Samples) -> dict[str, float]:
    """Ratio of the medians of two runs, with its 95 % bootstrap interval: `ratio`, `low`, `high`."""

    def ratio(above: Samples, below: Samples, axis: int = -1) -> Any:
        return np.median(above, axis=axis) / np.median(below, axis=axis)

    return _with_interval(ratio, numerator, denominator)


def _with_interval(statistic: Callable[..., Any], *samples: Samples) -> dict[str, float]:
    from scipy.stats import bootstrap

    interval = bootstrap(samples, statistic, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return {"ratio": float(statistic(*samples)), "low": float(interval.low), "high": float(interval.high)}

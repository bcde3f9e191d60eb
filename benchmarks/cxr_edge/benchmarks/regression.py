"""Comparison of a benchmark record with a baseline and a budget."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.statistics import NEEDED, ratio_of_medians
from cxr_edge.benchmarks.suite import SCHEMA_VERSION
from cxr_edge.common.limits import read_limits
from cxr_edge.runtime.errors import CxrEdgeWarning, UsageError

Totals = Mapping[str, npt.NDArray[np.float64]]
#: Figures that a budget can limit -> option that is needed to measure them.
LIMITS: Mapping[str, str] = {
    **{f"total_p{p}_ms": f"--samples {needed}" for p, needed in NEEDED.items()},
    "cold_start_s": "--cold",
    "peak_rss_mb": "--cold",
    "size_mb": "",
}


@dataclass(frozen=True)
class Check:
    """One limit of one file, its measured value, and whether the value is within the limit.

    Attributes
    ----------
    name
        A key of the budget, or `slowdown`: the ratio of the median total time to that of the baseline.
    value
        None if it was not measured; the check then fails.
    interval
        95 % interval of a slowdown.
    fastest
        Slowdown of the fastest sample. Other processes can multiply the median, but hardly affect the fastest sample
        (Chen and Revels, Robust benchmarking in noisy environments, 2016). A slowdown fails only if this and the lower
        end of the interval are both above the limit.
    against_first
        Slowdown (`ratio`, `low`, `high`) of the times divided by those of the baseline's first file in the same rounds,
        so that the speed of the machine cancels out. None for the first file itself, or if it was not measured.
    """

    file: str
    name: str
    value: float | None
    limit: float
    passed: bool
    interval: tuple[float, float] | None = None
    fastest: float | None = None
    against_first: Mapping[str, float] | None = None

    def __str__(self) -> str:
        if self.value is None:
            needs = LIMITS.get(self.name)
            return f"{self.file}: {self.name} was not measured" + (f"; it needs {needs}" if needs else "")
        if self.interval is None:
            return f"{self.file}: {self.name} is {self.value:.4g}, and the limit of the budget is {self.limit:.4g}"
        slower = f"{_times(self.value, *self.interval)} the baseline's time, the fastest ×{self.fastest:.2f}"
        beside = f"; against the first file {_times(**self.against_first)}" if self.against_first else ""
        return f"{self.file}: {slower}, allowed ×{self.limit:.2f}{beside}"


@dataclass(frozen=True)
class Timings:
    """The part of a record that is compared: (samples,) total milliseconds by file, and the conditions."""

    totals_ms: Totals
    conditions: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Timings:
        """Read a record; KeyError, TypeError or ValueError if it is not one."""
        totals = np.array([row["samples_ms"]["total"] for row in record["files"]], dtype=np.float64)
        if totals.ndim != 2 or not totals.size or not (np.isfinite(totals) & (totals > 0)).all():
            raise ValueError("a time is missing or not positive")
        conditions = {
            "processor": record["machine"]["processor"],
            "threads": record["options"]["threads"],
            "images": record["images"],
        }
        return cls({row["file"]: total for row, total in zip(record["files"], totals, strict=True)}, conditions)


@dataclass(frozen=True)
class Limits:
    """The baseline and the budget to which a record is compared; both may be missing."""

    baseline: Timings | None
    max_slowdown: float
    budget: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, baseline: Path | None, max_slowdown: float, budget: Path | None) -> Limits:
        """Read the files; UsageError if one is not valid."""
        return cls(load_baseline(baseline) if baseline else None, max_slowdown, load_budget(budget) if budget else {})

    def check(self, record: Mapping[str, Any]) -> list[Check]:
        """Compare a record with the budget, then with the baseline; warn if their conditions differ."""
        checks = check_budget(record, self.budget)
        if self.baseline is None:
            return checks
        now = Timings.of(record)
        for difference in differences(now, self.baseline):
            warnings.warn(f"times may differ for another reason; {difference}", CxrEdgeWarning, stacklevel=2)
        return checks + check_slowdown(now, self.baseline, self.max_slowdown)


def load_baseline(path: Path) -> Timings:
    """Read an earlier record of `cxr-edge bench`; UsageError if the file is not one, or has another version."""
    try:
        record = json.loads(path.read_text())
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']}, not {SCHEMA_VERSION}")
        return Timings.of(record)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: not a record of `cxr-edge bench -o FILE` ({error!r}); measure the baseline again"
        ) from error


def load_budget(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Read the limits of each file, and those of all files under `all`; UsageError if a key is unknown."""
    return read_limits(path, LIMITS)


def differences(now: Timings, baseline: Timings) -> list[str]:
    """Differences in the conditions, because of which the two runs may take different times."""
    pairs = ((key, baseline.conditions[key], value) for key, value in now.conditions.items())
    return [f"{key}: {before} in the baseline, {after} now" for key, before, after in pairs if before != after]


def check_slowdown(now: Timings, baseline: Timings, limit: float) -> list[Check]:
    """Compare each file of the baseline with its earlier time."""
    return [_check(file, now.totals_ms, baseline.totals_ms, limit) for file in baseline.totals_ms]


def check_budget(record: Mapping[str, Any], budget: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """Check each measured file and each file in the budget; its own limits override those of `all`."""
    found = {row["file"]: _figures(row) for row in record["files"]}
    checks = []
    for file in dict.fromkeys([*found, *(name for name in budget if name != "all")]):
        for name, limit in {**budget.get("all", {}), **budget.get(file, {})}.items():
            value = found.get(file, {}).get(name)
            checks.append(Check(file, name, value, limit, value is not None and value <= limit))
    return checks


def _check(file: str, now: Totals, baseline: Totals, limit: float) -> Check:
    if file not in now:
        return Check(file, "slowdown", None, limit, passed=False)
    after, before, first = now[file], baseline[file], next(iter(baseline))
    found, fastest = ratio_of_medians(after, before), float(after.min() / before.min())
    beside = None
    if file != first and first in now:
        beside = ratio_of_medians(after / now[first], before / baseline[first])
    passed = found["low"] <= limit or fastest <= limit
    return Check(file, "slowdown", found["ratio"], limit, passed, (found["low"], found["high"]), fastest, beside)


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a budget can limit, if they were measured."""
    totals = {f"total_{p}_ms": milliseconds for p, milliseconds in row["stages_ms"]["total"].items()}
    cold = {name: row[name] for name in ("cold_start_s", "peak_rss_mb") if name in row}
    return {**totals, **cold, "size_mb": row["bytes"] / 1e6}


def _times(ratio: float, low: float, high: float) -> str:
    return f"×{ratio:.2f} [{low:.2f}, {high:.2f}]"

"""Did a bundle become slower than it was, or larger than it may be? A bench record against a baseline and a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.statistics import NEEDED, ratio_of_medians
from cxr_edge.benchmarks.suite import SCHEMA_VERSION
from cxr_edge.common.limits import read_limits
from cxr_edge.runtime.errors import UsageError

Totals = Mapping[str, npt.NDArray[np.float64]]
#: What a budget can limit, and the option without which it is not measured.
LIMITS: Mapping[str, str] = {
    **{f"total_p{p}_ms": f"--samples {needed}" for p, needed in NEEDED.items()},
    "cold_start_s": "--cold",
    "peak_rss_mb": "--cold",
    "size_mb": "",
}


@dataclass(frozen=True)
class Check:
    """One limit of one file, what was measured, and whether it held.

    Attributes
    ----------
    name
        A key of the budget, or `slowdown`: the file's median total time over the baseline's.
    value
        None if it was not measured, which never passes.
    interval
        Of a slowdown, 95 %.
    fastest
        Of a slowdown: the same for the fastest sample of each run. Other processes raise the median many times over
        and hardly move the fastest (Chen and Revels, Robust benchmarking in noisy environments, 2016): a slowdown fails
        if the interval's lower end and this are both above the limit.
    against_first
        Of a slowdown: the same (`ratio`, `low`, `high`) of times divided by those of the baseline's first file beside
        them, so that the speed of the machine on the day cancels. None for that file itself, or if it was not measured.
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
            return f"{self.file}: {self.name} is {self.value:.4g}, the budget's limit {self.limit:.4g}"
        slower = f"{_times(self.value, *self.interval)} the baseline's time, the fastest ×{self.fastest:.2f}"
        beside = f"; against the first file {_times(**self.against_first)}" if self.against_first else ""
        return f"{self.file}: {slower}, allowed ×{self.limit:.2f}{beside}"


@dataclass(frozen=True)
class Timings:
    """What of a record is compared: (samples,) total milliseconds by file, and the conditions that they hold for."""

    totals_ms: Totals
    conditions: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Timings:
        """Take them from a record; KeyError, TypeError or ValueError if it is none."""
        totals = np.array([row["samples_ms"]["total"] for row in record["files"]], dtype=np.float64)
        if totals.ndim != 2 or not totals.size or not (np.isfinite(totals) & (totals > 0)).all():
            raise ValueError("a time is missing or not positive")
        conditions = {
            "processor": record["machine"]["processor"],
            "threads": record["options"]["threads"],
            "images": record["images"],
        }
        return cls({row["file"]: total for row, total in zip(record["files"], totals, strict=True)}, conditions)


def load_baseline(path: Path) -> Timings:
    """Read an earlier record of `cxr-edge bench`; UsageError if the file is none, or of another version."""
    try:
        record = json.loads(path.read_text())
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']}, not {SCHEMA_VERSION}")
        return Timings.of(record)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is no record of this version's `cxr-edge bench -o FILE` ({error!r})") from error


def load_budget(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Read limits by file, `all` for every file; UsageError if a key means nothing."""
    return read_limits(path, LIMITS)


def differences(now: Timings, baseline: Timings) -> list[str]:
    """Conditions under which the two runs cannot be expected to take the same time."""
    pairs = ((key, baseline.conditions[key], value) for key, value in now.conditions.items())
    return [f"{key}: {before} in the baseline, {after} now" for key, before, after in pairs if before != after]


def check_slowdown(now: Timings, baseline: Timings, limit: float) -> list[Check]:
    """Hold each file of the baseline against its time then."""
    return [_check(file, now.totals_ms, baseline.totals_ms, limit) for file in baseline.totals_ms]


def check_budget(record: Mapping[str, Any], budget: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """Hold each file measured, and each that the budget names, against the limits of `all` under its own."""
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
    """What a budget can limit, as far as it was measured."""
    totals = {f"total_{p}_ms": milliseconds for p, milliseconds in row["stages_ms"]["total"].items()}
    cold = {name: row[name] for name in ("cold_start_s", "peak_rss_mb") if name in row}
    return {**totals, **cold, "size_mb": row["bytes"] / 1e6}


def _times(ratio: float, low: float, high: float) -> str:
    return f"×{ratio:.2f} [{low:.2f}, {high:.2f}]"

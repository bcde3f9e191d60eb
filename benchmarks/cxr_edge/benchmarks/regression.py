"""Comparison of a benchmark record with a baseline and a budget."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.compare.sides import Side
from cxr_edge.benchmarks.compare.verdict import MACHINE, SLOWER, UNDECIDED, Comparison
from cxr_edge.benchmarks.statistics import NEEDED, ratio_of_medians
from cxr_edge.benchmarks.suite import SCHEMA_VERSION
from cxr_edge.common.limits import read_limits
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import BundleError, CxrEdgeWarning, UsageError

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
    control
        Slowdown (`ratio`, `low`, `high`) of the control, which runs no code of ours: about 1 if the machine is as fast
        as it was. None if the baseline has no control.
    in_turns
        The comparison, if both sides ran in turns. Its verdict decides.
    """

    file: str
    name: str
    value: float | None
    limit: float
    passed: bool
    interval: tuple[float, float] | None = None
    fastest: float | None = None
    against_first: Mapping[str, float] | None = None
    control: Mapping[str, float] | None = None
    in_turns: Comparison | None = None

    def __str__(self) -> str:
        if self.value is None:
            needs = LIMITS.get(self.name)
            return f"{self.file}: {self.name} was not measured" + (f"; it needs {needs}" if needs else "")
        if self.in_turns is not None:
            return f"{self.file}: {_told(self.in_turns)}"
        if self.interval is None:
            return f"{self.file}: {self.name} is {self.value:.4g}, and the limit of the budget is {self.limit:.4g}"
        slower = f"{_times(self.value, *self.interval)} the baseline's time, the fastest ×{self.fastest:.2f}"
        beside = f"; against the first file {_times(**self.against_first)}" if self.against_first else ""
        machine = f"; the control {_times(**self.control)}" if self.control else ""
        return f"{self.file}: {slower}, allowed ×{self.limit:.2f}{beside}{machine}"


@dataclass(frozen=True)
class Timings:
    """The part of a record that is compared.

    Attributes
    ----------
    totals_ms
        File -> (samples,) total milliseconds.
    conditions
        Processor, threads and number of images.
    control_ms
        (samples,) milliseconds of the control; None in a record of an earlier version.
    """

    totals_ms: Totals
    conditions: Mapping[str, Any]
    control_ms: npt.NDArray[np.float64] | None = None

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
        by_file = {row["file"]: total for row, total in zip(record["files"], totals, strict=True)}
        control = record.get("control_ms")
        return cls(by_file, conditions, None if control is None else np.array(control, np.float64))

    def without(self, files: Collection[str]) -> Timings:
        """The same without these files."""
        rest = {file: totals for file, totals in self.totals_ms.items() if file not in files}
        return replace(self, totals_ms=rest)


@dataclass(frozen=True)
class Baseline:
    """An earlier record.

    Attributes
    ----------
    timings
        Its absolute figures.
    created
        When it was measured (ISO 8601).
    side
        Its bundle, if that is where it was and unchanged.
    revision
        Commit of the code that measured it; None if it is not known.
    why_not
        Why its bundle cannot run again; empty if it can.
    """

    timings: Timings
    created: str
    side: Side | None = None
    revision: str | None = None
    why_not: str = ""

    @property
    def warning(self) -> str:
        """What the user must know when only the absolute figures can be compared."""
        return (
            f"the baseline is an absolute figure of {self.created}, and {self.why_not}; a slower machine looks like "
            "slower code. Keep the bundle of the baseline, or compare in turns with --against"
        )


@dataclass(frozen=True)
class Limits:
    """The baseline and the budget to which a record is compared; both may be missing."""

    baseline: Baseline | None
    max_slowdown: float
    budget: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, baseline: Path | None, max_slowdown: float, budget: Path | None) -> Limits:
        """Read the files; UsageError if one is not valid."""
        return cls(load_baseline(baseline) if baseline else None, max_slowdown, load_budget(budget) if budget else {})

    def check(self, record: Mapping[str, Any], in_turns: Sequence[Comparison] = ()) -> list[Check]:
        """Compare a record with the budget, then with the baseline.

        The baseline's files that ran in turns with ours are judged by that comparison. The others are judged by their
        absolute figures; there is a warning if the conditions differ.
        """
        checks = check_budget(record, self.budget) + [check_of(found) for found in in_turns]
        judged = {found.file for found in in_turns}
        if self.baseline is None or judged.issuperset(self.baseline.timings.totals_ms):
            return checks
        now, before = Timings.of(record), self.baseline.timings.without(judged)
        for difference in differences(now, before):
            warnings.warn(f"times may differ for another reason; {difference}", CxrEdgeWarning, stacklevel=2)
        return checks + check_slowdown(now, before, self.max_slowdown)


def load_baseline(path: Path) -> Baseline:
    """Read an earlier record of `cxr-edge bench`; UsageError if the file is not one, or has another version."""
    try:
        record = json.loads(path.read_text())
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"found schema_version {record['schema_version']}, expected {SCHEMA_VERSION}")
        timings, why_not = Timings.of(record), _why_not(record.get("bundle"))
        side = None if why_not else Side(f"the baseline of {record['created']}", Path(record["bundle"]["folder"]))
        return Baseline(timings, record.get("created", "an unknown date"), side, record.get("revision"), why_not)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: not a record of `cxr-edge bench -o FILE` ({error!r}); measure the baseline again"
        ) from error


def _why_not(bundle: Mapping[str, Any] | None) -> str:
    """Why the bundle of a baseline cannot run again; empty if it can."""
    if bundle is None:
        return "it does not say where its bundle is"
    folder = Path(bundle["folder"])
    try:
        files = {file.path: file.sha256 for file in Bundle.open(folder).manifest.files}
    except BundleError:
        return f"its bundle is not at {folder} any more"
    return "" if files == bundle["sha256"] else f"the bundle at {folder} has changed since"


def load_budget(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Read the limits of each file, and those of all files under `all`; UsageError if a key is unknown."""
    return read_limits(path, LIMITS)


def differences(now: Timings, baseline: Timings) -> list[str]:
    """Differences in the conditions, because of which the two runs may take different times."""
    pairs = ((key, baseline.conditions[key], value) for key, value in now.conditions.items())
    return [f"{key}: {before} in the baseline, {after} now" for key, before, after in pairs if before != after]


def check_of(found: Comparison) -> Check:
    """The limit of a comparison in turns. Only a verdict that is certain fails."""
    interval = (found.wall.low, found.wall.high)
    passed = found.verdict != SLOWER
    return Check(found.file, "slowdown", found.wall.ratio, found.limit, passed, interval, in_turns=found)


def check_slowdown(now: Timings, baseline: Timings, limit: float) -> list[Check]:
    """Compare each file of the baseline with its earlier time."""
    control = None
    if now.control_ms is not None and baseline.control_ms is not None:
        control = ratio_of_medians(now.control_ms, baseline.control_ms)
    return [_check(file, now.totals_ms, baseline.totals_ms, limit, control) for file in baseline.totals_ms]


def check_budget(record: Mapping[str, Any], budget: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """Check each measured file and each file in the budget; its own limits override those of `all`."""
    found = {row["file"]: _figures(row) for row in record["files"]}
    checks = []
    for file in dict.fromkeys([*found, *(name for name in budget if name != "all")]):
        for name, limit in {**budget.get("all", {}), **budget.get(file, {})}.items():
            value = found.get(file, {}).get(name)
            checks.append(Check(file, name, value, limit, value is not None and value <= limit))
    return checks


def _check(file: str, now: Totals, baseline: Totals, limit: float, control: Mapping[str, float] | None) -> Check:
    if file not in now:
        return Check(file, "slowdown", None, limit, passed=False)
    after, before, first = now[file], baseline[file], next(iter(baseline))
    found, fastest = ratio_of_medians(after, before), float(after.min() / before.min())
    beside = None
    if file != first and first in now:
        beside = ratio_of_medians(after / now[first], before / baseline[first])
    passed = found["low"] <= limit or fastest <= limit
    return Check(
        file, "slowdown", found["ratio"], limit, passed, (found["low"], found["high"]), fastest, beside, control
    )


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a budget can limit, if they were measured."""
    totals = {f"total_{p}_ms": milliseconds for p, milliseconds in row["stages_ms"]["total"].items()}
    cold = {name: row[name] for name in ("cold_start_s", "peak_rss_mb") if name in row}
    return {**totals, **cold, "size_mb": row["bytes"] / 1e6}


def _told(found: Comparison) -> str:
    """A comparison in words."""
    doubt = {
        UNDECIDED: "; UNDECIDED: the interval contains the limit, also in the longer run",
        MACHINE: "; NO VERDICT: the control, which runs no code of ours, differs as well. Measure again",
    }.get(found.verdict, "")
    moved = f"; the machine moved: control ×{found.drift:.2f} between blocks" if found.moved else ""
    flips = f"; {found.flips} answers differ, |Δp| ≤ {found.max_difference:.4f}" if found.flips else ""
    return (
        f"{found.wall} the other's time (processor time {found.cpu}), allowed ×{found.limit:.2f}; "
        f"{found.ms[0]:.2f} and {found.ms[1]:.2f} ms; control {found.control}{moved}{flips}{doubt}"
    )


def _times(ratio: float, low: float, high: float) -> str:
    return f"×{ratio:.2f} [{low:.2f}, {high:.2f}]"

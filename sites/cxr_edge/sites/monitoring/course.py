"""`cxr-edge monitor` from files to the results of all windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxr_edge.common.drift import Limits
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.sites.monitoring.decisions import Decisions, read_decisions
from cxr_edge.sites.monitoring.monitor import FALSE_ALARMS, Result, compare, reference_in
from cxr_edge.sites.monitoring.windows import SMALLEST, by_count, by_day

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Course:
    """The results of all windows, and what was said about the rows."""

    bundle: Bundle
    operating_point: str
    results: tuple[Result, ...]
    notes: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether any window differs from the reference."""
        return any(result.moved for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Content of `--format json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle.manifest.name,
            "operating_point": self.operating_point,
            "false_alarms": FALSE_ALARMS,
            "moved": self.moved,
            "notes": list(self.notes),
            "windows": [asdict(result) for result in self.results],
        }


def follow(files: Sequence[Path], bundle: Bundle, size: int | None, limits: Limits = (0.0, 1.0)) -> Course:
    """Compare the decisions in files with the reference of a bundle.

    Parameters
    ----------
    size
        Number of images in a window; None means one window for each day.
    limits
        Least and largest share of pneumonia at the site.

    Raises
    ------
    BundleError
        If the bundle has no reference.
    DataError
        If the files cannot be used (`read_decisions`), or there are too few rows for a window.
    """
    reference_in(bundle)
    decisions = read_decisions(files, bundle)
    windows, left = by_day(decisions.rows) if size is None else by_count(decisions.rows, size)
    notes = (*_notes(decisions, left), *_order(decisions, size))
    return Course(bundle, decisions.operating_point, tuple(compare(windows, bundle, limits)), notes)


def _notes(decisions: Decisions, left: int) -> list[str]:
    """What was left out, and what could not be checked."""
    notes = []
    if decisions.failed:
        notes.append(f"{decisions.failed} rows are errors of images and were left out.")
    if decisions.broken:
        notes.append(f"{decisions.broken} lines are no decisions and were left out; expected rows of `predict`.")
    if left:
        notes.append(f"{left} rows at the end are fewer than {SMALLEST} and were not compared; they wait for more.")
    if not decisions.checked:
        notes.append(
            "The model could not be checked by its sha256: FILE.run.json of `predict -o` is missing. Temperature and "
            "threshold of the rows are those of the bundle."
        )
    return notes


def _order(decisions: Decisions, size: int | None) -> list[str]:
    """How rows became windows."""
    if size is None:
        return []
    timed = all(row.day for row in decisions.rows)
    return [f"Windows are counted in file order{'; --by day uses the time of the rows' if timed else ''}."]

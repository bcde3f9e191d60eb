"""Division of decisions into windows: by count in file order, or by the day of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cxr_edge.runtime.errors import DataError
from cxr_edge.sites.monitoring.decisions import Decision

#: Windows of fewer rows say too little and are not compared.
SMALLEST = 50


@dataclass(frozen=True)
class Window:
    """Rows that are compared together.

    `name` is the range of rows, counted from 1, or the first and the last day.
    """

    name: str
    rows: tuple[Decision, ...]


def by_count(rows: Sequence[Decision], size: int) -> tuple[list[Window], int]:
    """Windows of `size` rows in file order, and the number of rows that are left over.

    The last window may be smaller, but not smaller than `SMALLEST`.

    Raises
    ------
    DataError
        If there is no window.
    """
    windows = []
    for start in range(0, len(rows), size):
        part = tuple(rows[start : start + size])
        if len(part) >= min(size, SMALLEST):
            windows.append(Window(f"{start + 1}–{start + len(part)}", part))
    return _checked(windows, rows)


def by_day(rows: Sequence[Decision]) -> tuple[list[Window], int]:
    """One window for each day, and the number of rows that are left over.

    A day with fewer than `SMALLEST` rows is joined with the days after it.

    Raises
    ------
    DataError
        If a row has no time, or there is no window.
    """
    if missing := sum(row.day is None for row in rows):
        raise DataError(
            f"found {missing} of {len(rows)} rows without a time, expected a field `time` (ISO 8601, such as "
            "2026-03-01T08:15:00) in each; use --window, which counts rows in file order"
        )
    windows, kept = [], list[Decision]()
    for day, found in _days(rows):
        kept += found
        if len(kept) >= SMALLEST:
            first = kept[0].day
            windows.append(Window(day if first == day else f"{first} – {day}", tuple(kept)))
            kept = []
    return _checked(windows, rows)


def _days(rows: Sequence[Decision]) -> Iterator[tuple[str, list[Decision]]]:
    for day, found in groupby(sorted(rows, key=lambda row: row.day or ""), key=lambda row: row.day or ""):
        yield day, list(found)


def _checked(windows: list[Window], rows: Sequence[Decision]) -> tuple[list[Window], int]:
    if not windows:
        raise DataError(
            f"found {len(rows)} decisions, expected at least {SMALLEST} for a window; wait for more, or name more files"
        )
    return windows, len(rows) - sum(len(window.rows) for window in windows)

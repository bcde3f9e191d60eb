"""The course of the windows: rows for the terminal, one object for JSON, and an HTML page with diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cxr_edge.common.figures import BLUE, GREY, RED, draw_png
from cxr_edge.common.pages import render_page
from cxr_edge.runtime.files import write_atomically
from cxr_edge.sites.monitoring.course import Course
from cxr_edge.sites.monitoring.monitor import Result, Share

#: Test -> its name for people.
NAMES = {
    "logit": "logit",
    "novelty": "novelty",
    "evidence_in_lungs": "evidence in the lungs",
    "novel": "share of novel images",
    "lungs_missed": "share of lungs not found",
}


def table_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """One row for each window: shares with their interval, and KS distances with their p-value."""
    return [_row(result) for result in results]


def _row(result: Result) -> dict[str, str]:
    row = {
        "window": result.name,
        "images": str(result.images),
        "positive": _percent(result.positive),
        "novel": _percent(result.novel),
        "lungs not found": "–" if result.lungs_missed is None else _percent(result.lungs_missed),
    }
    for name, label in (("logit", "logit"), ("novelty", "novelty"), ("evidence_in_lungs", "evidence")):
        row[label] = _distance(result, name)
    return row | {"moved": ", ".join(NAMES[each.test] for each in result.moved) or "–"}


def _percent(share: Share) -> str:
    return f"{share.share:.1%} ({share.low:.1%}–{share.high:.1%})"


def _distance(result: Result, name: str) -> str:
    if name not in result.distances:
        return "–"
    found, p = result.distances[name], result.p_values[name]
    return f"KS {found.ks:.3f}, PSI {found.psi:.2f}, p {p:.2g}"


def print_course(course: Course) -> None:
    """Print the table on standard output, and below it what moved, with the advice and the images to look at."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    rows = table_rows(course.results)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row, result in zip(rows, course.results, strict=True):
        table.add_row(*row.values(), style="red" if result.moved else None)
    console = Console(soft_wrap=False)
    console.print(table)
    for result in course.results:
        _print_alarms(console, result)
    for note in course.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print("something moved" if course.moved else "nothing moved", style="bold")


def _print_alarms(console: Any, result: Result) -> None:
    say = {"markup": False, "highlight": False, "soft_wrap": True}
    for each in result.moved:
        console.print(f"\n{result.name}: {NAMES[each.test]} moved (p {each.p_value:.2g})\n{each.advice}", **say)
        for path in each.images:
            console.print(f"  {path}", **say)
    if result.moved and result.kinds:
        kinds = ", ".join(f"{kind} {count}" for kind, count in result.kinds.items())
        console.print(f"Novel images resemble: {kinds}", **say)
    for note in result.notes:
        console.print(f"\n{result.name}: {note}", **say)


def write_page(path: Path, course: Course) -> None:
    """Write the page: diagrams of the course, the table, and each alarm."""
    page = render_page(
        "cxr_edge.sites", "monitor.html.j2", course=course, rows=table_rows(course.results), names=NAMES,
        diagrams=_diagrams(course.results),
    )  # fmt: skip
    write_atomically(path, page)


def _diagrams(results: Sequence[Result]) -> list[tuple[str, bytes]]:
    """Title and PNG of each diagram."""
    shares = [("positive", "share of positives"), ("novel", NAMES["novel"]), ("lungs_missed", NAMES["lungs_missed"])]
    drawn = [
        (title, partial(_draw_shares, results=results, name=name)) for name, title in shares if _has(results, name)
    ]
    drawn += [(f"{NAMES[n]}: distance (KS)", partial(_draw_ks, results=results, name=n)) for n in results[0].distances]
    return [(title, draw_png(draw, 6, 2.8)) for title, draw in drawn]


def _has(results: Sequence[Result], name: str) -> bool:
    return all(getattr(result, name) is not None for result in results)


def _draw_shares(axes: Any, results: Sequence[Result], name: str) -> None:
    found = [getattr(result, name) for result in results]
    values = [share.share for share in found]
    spread = [[s.share - s.low for s in found], [s.high - s.share for s in found]]
    _draw(axes, results, values, spread, name)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _draw_ks(axes: Any, results: Sequence[Result], name: str) -> None:
    found = [(r.distances[name].ks, *(end.ks for end in r.intervals[name])) for r in results if name in r.distances]
    kept = [result for result in results if name in result.distances]
    spread = [[max(0.0, ks - low) for ks, low, _ in found], [max(0.0, high - ks) for ks, _, high in found]]
    _draw(axes, kept, [ks for ks, _, _ in found], spread, name)


def _draw(axes: Any, results: Sequence[Result], values: Sequence[float], spread: Any, test: str) -> None:
    """Values with their intervals; windows in which this test moved are red."""
    places = range(1, len(results) + 1)
    axes.errorbar(places, values, yerr=spread, fmt="none", ecolor=GREY, linewidth=1)
    colours = [RED if any(each.test == test for each in result.moved) else BLUE for result in results]
    axes.scatter(places, values, c=colours, s=22, zorder=3)
    axes.set(xlabel="window", ylim=(0, None))
    axes.grid(alpha=0.3)

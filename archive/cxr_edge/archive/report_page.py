"""The report on the terminal, as JSON, and as an HTML page with diagrams and radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np

from cxr_edge.archive.reading import read_bytes
from cxr_edge.archive.report import Case, Group, Report, unusual
from cxr_edge.common.figures import BLUE, draw_png, encode_jpeg
from cxr_edge.common.pages import render_page
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.cli.console import emit
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.explanation.gradcam import overlay
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.imaging.image import read_image

#: Quality of the JPEG pictures of the page, and seconds to read one radiograph.
QUALITY, TIMEOUT = 80, 30.0
#: Shares that are shown for each group.
SHARES = {"pneumonia": "share of pneumonia", "novel": "share of novel images", "errors": "share of errors"}


@dataclass(frozen=True)
class Picture:
    """An image of a gallery; `picture` is None if it cannot be read any more, and `reason` says why."""

    case: Case
    picture: bytes | None
    reason: str


def print_report(report: Report, format: str) -> None:
    """Print the numbers on standard output."""
    if format == "json":
        emit(report.to_dict(), format)
        return
    emit(summary(report), "table")
    for note in report.notes:
        click.echo(f"note: {note}", err=True)


def summary(report: Report) -> list[dict[str, str]]:
    """The numbers of the whole result, a row for each."""
    total = report.total
    rows = {"rows": f"{total.rows:,}", "inputs": f"{report.inputs:,}"}
    rows |= {label: f"{getattr(total, name):,} ({total.share(name):.2%})" for name, label in _shown(total).items()}
    if report.studies:
        rows["studies"] = f"{report.studies[0]:,}, {report.studies[1]:,} of them with an image called pneumonia"
    for name, each in report.distances.items():
        rows[f"drift of {name.replace('_', ' ')}"] = (
            f"KS {each.ks:.3f} ({each.ks_interval[0]:.3f}–{each.ks_interval[1]:.3f}), "
            f"PSI {each.psi:.2f} ({each.psi_interval[0]:.2f}–{each.psi_interval[1]:.2f})"
        )
    if report.labelled:
        rows["labelled"] = f"{report.labelled:,}"
    rows |= {name: _estimate(each) for name, each in report.figures.items()}
    return [{"what": name, "found": value} for name, value in rows.items()]


def _shown(total: Group) -> dict[str, str]:
    names = {"pneumonia": "pneumonia", "unsure": "unsure", "novel": "novel", "errors": "errors"}
    return {name: label for name, label in names.items() if name != "unsure" or total.unsure}


def _estimate(each: Any) -> str:
    if each.value is None:
        return "–"
    return f"{each.value:.4f}" if each.low is None else f"{each.value:.4f} ({each.low:.4f}–{each.high:.4f})"


def write_page(path: Path, report: Report, with_pictures: bool = True) -> None:
    """Write the page: one file with everything in it.

    Parameters
    ----------
    with_pictures
        Whether radiographs are read again and shown. Their content must be that of the row.
    """
    galleries = {
        "The most novel": report.novel,
        "Closest to the threshold": report.close,
    }
    bundle = report.bundle
    shown = {t: [_picture(c, bundle) for c in cases] for t, cases in galleries.items()} if with_pictures else {}
    page = render_page(
        "cxr_edge.archive", "archive.html.j2", report=report, rows=summary(report), galleries=shown,
        unusual=unusual(report.parts), shares=SHARES, diagrams=_diagrams(report),
    )  # fmt: skip
    write_atomically(path, page)


def _picture(case: Case, bundle: Bundle) -> Picture:
    """Read a radiograph again and draw its heatmap."""
    try:
        content = _content(case.uri)
        if sha256(content).hexdigest() != case.sha256:
            return Picture(case, None, "the file has changed since it was scored")
        gray = read_image(content, name=case.uri)
    except ImageError as error:
        return Picture(case, None, str(error))
    manifest = bundle.manifest
    heatmap = np.array(case.heatmap, np.float32).reshape(7, 7)
    caption = f"{case.label}  p={case.probability:.3f}  novelty={case.novelty:.2f}"
    return Picture(case, encode_jpeg(overlay(gray, heatmap, manifest.heatmap, manifest.input, caption), QUALITY), "")


def _content(uri: str) -> bytes:
    """The bytes of an input, also of a member of a tar file."""
    if not uri.startswith("tar://"):
        return read_bytes(uri, MAX_PIXELS, TIMEOUT)
    import fsspec

    try:
        with fsspec.open(uri, "rb") as stream:
            return bytes(stream.read())
    except Exception as error:  # each store has its own exceptions
        raise ImageError(f"{uri}: cannot be read ({type(error).__name__}: {error}); check the address") from error


def _diagrams(report: Report) -> list[tuple[str, bytes]]:
    """Title and PNG of each diagram."""
    drawn = []
    for axis, groups in (("file, in the order of URIs", report.parts), ("time", report.times)):
        if len(groups) > 1:
            for name, title in SHARES.items():
                drawn.append(
                    (f"{title} by {axis.partition(',')[0]}", partial(_draw, groups=groups, name=name, axis=axis))
                )
    return [(title, draw_png(draw, 6, 2.8)) for title, draw in drawn]


def _draw(axes: Any, groups: Sequence[Group], name: str, axis: str) -> None:
    """Shares of groups with their standard error."""
    values = np.array([group.share(name) for group in groups])
    sizes = np.array([max(1, group.rows) for group in groups])
    places = np.arange(len(groups))
    axes.errorbar(places, values, yerr=np.sqrt(values * (1 - values) / sizes), fmt=".", color=BLUE, linewidth=1)
    if axis == "time":
        step = max(1, len(groups) // 6)
        axes.set_xticks(places[::step], [group.name for group in groups[::step]], fontsize=7)
    axes.set(xlabel=axis, ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.grid(alpha=0.3)

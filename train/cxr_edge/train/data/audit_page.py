"""The audit report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES, evenly
from cxr_edge.common.figures import encode_jpeg, figure_png, shrink
from cxr_edge.common.pages import render_page
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.train.data.audit import Audit, Origin, Radiograph
from cxr_edge.train.data.duplicates import MAX_DISTANCE
from cxr_edge.train.data.shortcuts import BORDER, NEAR_BLACK, cue_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Limits of the page: radiographs of each class, groups of duplicates, images of a group, lines of a list.
SAMPLES, GROUPS, IN_GROUP, LINES = 12, 9, 4, 50
#: Longer side (pixels) and JPEG quality of a thumbnail.
SIDE, QUALITY = 200, 82
COLOURS = ("#2a7f8e", "#c8642b")


def write_page(path: Path, audit: Audit) -> None:
    """Render the page with embedded pictures."""
    shared = {"audit": audit, "classes": CLASSES, "colours": COLOURS, "samples": _samples(audit.radiographs)}
    limits = {"groups": GROUPS, "in_group": IN_GROUP, "lines": LINES, "bits": MAX_DISTANCE}
    cues = {"border": BORDER, "near_black": NEAR_BLACK, "histograms": _histograms(audit) if audit.shortcuts else None}
    page = render_page("cxr_edge.train", "audit.html.j2", thumbnail=thumbnail, **shared, **limits, **cues)
    write_atomically(path, page)


def thumbnail(origin: Origin) -> bytes:
    """Thumbnail of a radiograph as a JPEG file."""
    return encode_jpeg(shrink(read_image(origin.path), SIDE), QUALITY)


def _samples(radiographs: Sequence[Radiograph]) -> dict[str, list[Radiograph]]:
    """Some radiographs of each class, evenly spaced over the data set."""
    return {name: evenly([each for each in radiographs if each.origin.label == name], SAMPLES) for name in CLASSES}


def _histograms(audit: Audit) -> bytes:
    """Histograms of each cue by class, in the order of the table, as a PNG file."""
    from matplotlib.figure import Figure

    values = np.array([astuple(image.cues) for image in audit.radiographs])
    labels = np.array([image.origin.label for image in audit.radiographs])
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, shortcut in zip(figure.subplots(2, 4).flat, audit.shortcuts, strict=True):
        _histogram(axes, values[:, cue_names().index(shortcut.cue)], labels)
        axes.set_title(f"{shortcut.cue}: AUC {shortcut.auc:.2f}", fontsize=11)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks([])
    return figure_png(figure)


def _histogram(axes: Axes, values: npt.NDArray[np.float64], labels: npt.NDArray[np.str_]) -> None:
    """Draw the histogram of one cue: (N,) values and class names."""
    # A few extreme images would put all others into one bar.
    low, high = np.percentile(values, (0.5, 99.5))
    if low == high:
        axes.text(0.5, 0.5, f"{low:.4g} in all images", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    edges = np.linspace(low, high, int(np.clip(np.sqrt(len(values)), 8, 40)) + 1)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        members = np.clip(values[labels == name], low, high)
        axes.hist(members, edges.tolist(), weights=np.full(len(members), 1 / len(members)), alpha=0.6, color=colour)

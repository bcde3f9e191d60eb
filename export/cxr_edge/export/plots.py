"""The diagrams of a verification, as PNG files in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from cxr_edge.export.layers import LayerReport
from cxr_edge.runtime.bundle import OperatingPoint
from cxr_edge.runtime.engines.base import FloatArray

#: Probabilities are drawn on a logit scale within these; smaller changes than this count as none.
_EDGES, _NO_CHANGE = (1e-4, 1 - 1e-4), 1e-8
_BLUE, _RED, _GREY = "#1f6feb", "#b3261e", "#8a949e"


def draw_changes(reference: FloatArray, files: Mapping[str, FloatArray]) -> bytes:
    """Share of images whose |Δprobability| is larger than x, a line for each file."""

    def draw(axes: Any) -> None:
        for name, probability in files.items():
            change = np.sort(np.maximum(np.nan_to_num(np.abs(probability - reference), nan=1), _NO_CHANGE))
            axes.step(change, 1 - np.arange(len(change)) / len(change), where="pre", label=name)
        axes.set(xscale="log", yscale="log", xlabel="|Δprobability|", ylabel="share of images at least so far off")
        axes.legend(fontsize=8)

    return _png(draw)


def draw_probabilities(reference: FloatArray, file: FloatArray, points: Sequence[OperatingPoint]) -> bytes:
    """The file's probability of each image against the trained network's; flipped images lie in the red quarters."""

    def draw(axes: Any) -> None:
        x, y = (np.clip(np.nan_to_num(p, nan=0.5), *_EDGES) for p in (reference, file))
        flipped = np.any([(x >= p.threshold) != (y >= p.threshold) for p in points], axis=0)
        axes.plot(_EDGES, _EDGES, color=_GREY, linestyle=":", linewidth=1)
        for point in points:
            axes.axvline(point.threshold, color=_GREY, linewidth=0.7)
            axes.axhline(point.threshold, color=_GREY, linewidth=0.7)
        axes.scatter(x[~flipped], y[~flipped], s=8, color=_BLUE, alpha=0.5, linewidths=0)
        axes.scatter(x[flipped], y[flipped], s=18, color=_RED, linewidths=0, label=f"flipped: {int(flipped.sum())}")
        ticks = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("logit")
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set(xlabel="probability, trained network", ylabel="probability, file", xlim=_EDGES, ylim=_EDGES)
        axes.legend(fontsize=8, loc="upper left")

    return _png(draw)


def draw_layers(report: LayerReport) -> bytes:
    """SQNR of every tensor in the order of the graph; the first below the limit is marked."""

    def draw(axes: Any) -> None:
        sqnr = [layer.sqnr for layer in report.layers]
        axes.axhline(report.limit, color=_RED, linewidth=1, linestyle=":", label=f"limit, {report.limit:.0f} dB")
        axes.plot(sqnr, color=_BLUE, marker="o", markersize=3, linewidth=1)
        if first := report.first_to_leave:
            place = list(report.layers).index(first)
            axes.plot([place], [first.sqnr], "o", color=_RED, markersize=7, label=first.name)
        axes.set(xlabel="tensor, in the order of the graph", ylabel="SQNR, dB")
        axes.legend(fontsize=8, loc="upper right")

    return _png(draw, 11)


def _png(draw: Callable[[Any], None], width: float = 5.2) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()

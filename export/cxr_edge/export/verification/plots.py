"""Diagrams of a verification as PNG files in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxr_edge.common.figures import BLUE, GREY, PROBABILITY_LIMITS, RED, draw_png, set_probability_scale
from cxr_edge.export.verification.layers import LayerReport
from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines.base import FloatArray

#: Changes of a probability below this are drawn at this value.
NO_CHANGE = 1e-8
#: Width and height of a diagram and of a wide diagram (inches).
SIZE, WIDE = (5.2, 4), (11, 4)


def draw_changes(reference: FloatArray, files: Mapping[str, FloatArray]) -> bytes:
    """Share of images with a |Δprobability| above x, one line for each file."""

    def draw(axes: Any) -> None:
        axes.grid(alpha=0.3)
        for name, probability in files.items():
            change = np.sort(np.maximum(np.nan_to_num(np.abs(probability - reference), nan=1), NO_CHANGE))
            axes.step(change, 1 - np.arange(len(change)) / len(change), where="pre", label=name)
        axes.set(xscale="log", yscale="log", xlabel="|Δprobability|", ylabel="share of images with a change ≥ x")
        axes.legend(fontsize=8)

    return draw_png(draw, *SIZE)


def draw_probabilities(reference: FloatArray, file: FloatArray, points: Sequence[OperatingPoint]) -> bytes:
    """Probability of each image by the file against that by the trained network; flipped images are red."""

    def draw(axes: Any) -> None:
        axes.grid(alpha=0.3)
        x, y = (np.clip(np.nan_to_num(p, nan=0.5), *PROBABILITY_LIMITS) for p in (reference, file))
        flipped = np.any([point.answer(x) != point.answer(y) for point in points], axis=0)
        axes.plot(PROBABILITY_LIMITS, PROBABILITY_LIMITS, color=GREY, linestyle=":", linewidth=1)
        for threshold in {threshold for point in points for threshold in point.thresholds}:
            axes.axvline(threshold, color=GREY, linewidth=0.7)
            axes.axhline(threshold, color=GREY, linewidth=0.7)
        axes.scatter(x[~flipped], y[~flipped], s=8, color=BLUE, alpha=0.5, linewidths=0)
        axes.scatter(x[flipped], y[flipped], s=18, color=RED, linewidths=0, label=f"flipped: {int(flipped.sum())}")
        for axis in ("x", "y"):
            set_probability_scale(axes, axis)
        axes.set(xlabel="probability, trained network", ylabel="probability, file")
        axes.legend(fontsize=8, loc="upper left")

    return draw_png(draw, *SIZE)


def draw_layers(report: LayerReport) -> bytes:
    """SQNR of every tensor in the order of the graph; the first tensor below the limit is marked."""

    def draw(axes: Any) -> None:
        axes.grid(alpha=0.3)
        sqnr = [layer.sqnr for layer in report.layers]
        axes.axhline(report.limit, color=RED, linewidth=1, linestyle=":", label=f"limit, {report.limit:.0f} dB")
        axes.plot(sqnr, color=BLUE, marker="o", markersize=3, linewidth=1)
        if first := report.first_to_leave:
            place = list(report.layers).index(first)
            axes.plot([place], [first.sqnr], "o", color=RED, markersize=7, label=first.name)
        axes.set(xlabel="tensor, in the order of the graph", ylabel="SQNR, dB")
        axes.legend(fontsize=8, loc="upper right")

    return draw_png(draw, *WIDE)

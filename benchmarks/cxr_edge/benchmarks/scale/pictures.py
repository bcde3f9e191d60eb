"""One picture with all curves."""

from __future__ import annotations

from collections.abc import Sequence

from cxr_edge.benchmarks.scale.curves import Curve
from cxr_edge.common.figures import BLUE, figure_png


def curves_picture(title: str, curves: Sequence[Curve]) -> bytes:
    """A PNG file: one diagram for each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5 * ((len(curves) + 2) // 3)), layout="constrained")
    for axes, curve in zip(figure.subplots((len(curves) + 2) // 3, 3, squeeze=False).flat, curves, strict=False):
        axes.plot(curve.x, curve.ms, marker="o", color=BLUE)
        axes.set(xlabel=curve.x_label, ylabel="ms per image", ylim=(0, None))
        if curve.x[-1] / curve.x[0] > 20:
            axes.set_xscale("log")
    figure.suptitle(title)
    return figure_png(figure)

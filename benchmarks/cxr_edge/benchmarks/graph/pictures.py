"""Pictures of a profile: time by type of operator, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxr_edge.benchmarks.graph.peaks import Peaks
from cxr_edge.benchmarks.graph.profile import Operator, by_kind
from cxr_edge.common.figures import BLUE, GREY, RED, figure_png


def profile_picture(title: str, operators: Sequence[Operator], peaks: Peaks, precision: str) -> bytes:
    """A PNG file: bars of measured and least time by type, and each operator under the roofline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    bars, roof = figure.subplots(1, 2)
    _draw_bars(bars, operators)
    _draw_roof(roof, operators, peaks.int8 if precision == "int8" else peaks.fp32, peaks.bandwidth)
    figure.suptitle(title)
    return figure_png(figure)


def _draw_bars(axes: Any, operators: Sequence[Operator]) -> None:
    rows = by_kind(operators)[:10][::-1]
    kinds = [f"{row['kind']} ({row['count']})" for row in rows]
    axes.barh(kinds, [row["ms"] for row in rows], color=BLUE, label="measured")
    axes.barh(kinds, [row["least_ms"] for row in rows], color=RED, height=0.3, label="limit")
    axes.set_xlabel("milliseconds of one image")
    axes.legend()


def _draw_roof(axes: Any, operators: Sequence[Operator], peak: float, bandwidth: float) -> None:
    known = [o for o in operators if o.macs and o.intensity and o.ms > 0]
    axes.scatter([o.intensity for o in known], [(o.macs or 0) / o.ms / 1e6 for o in known], s=18, color=BLUE)
    ends = (0.1, 1000.0)
    corners = [ends[0], peak / bandwidth, ends[1]]
    axes.plot(corners, [min(peak, bandwidth * x) for x in corners], color=GREY)
    axes.set(xscale="log", yscale="log", xlabel="multiply-accumulates per byte", ylabel="10⁹ multiply-accumulates / s")
    axes.set_title(f"roofline: {peak:.0f}·10⁹ / s, {bandwidth:.0f} GB/s")

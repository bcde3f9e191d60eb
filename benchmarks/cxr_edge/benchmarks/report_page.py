"""The demo's report: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_edge.benchmarks.latency import STAGES
from cxr_edge.common.pages import render_page
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.benchmarks.demo import DemoResult


def write_page(path: Path, result: DemoResult) -> None:
    """Write the page; pictures are embedded."""
    curves = (result.run / "curves.png").read_bytes()
    write_atomically(
        path, render_page("cxr_edge.benchmarks", "report.html.j2", result=result, curves=curves, stages=STAGES)
    )

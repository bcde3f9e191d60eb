"""The report of the demo: one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.benchmarks.latency import STAGES
from cxr_edge.common.pages import render_page
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.common.figures import GalleryImage
    from cxr_edge.export.verification.verify import Verification


@dataclass(frozen=True)
class DemoResult:
    """The results of all stages: `record` is that of the run, `benchmark` that of the benchmark."""

    data: Path
    run: Path
    bundle: Path
    record: dict[str, Any]
    verification: Verification
    benchmark: dict[str, Any]
    shown: list[GalleryImage]


def write_page(path: Path, result: DemoResult) -> None:
    """Write the page with embedded pictures."""
    curves = (result.run / "curves.png").read_bytes()
    page = render_page("cxr_edge.benchmarks", "report.html.j2", result=result, curves=curves, stages=STAGES)
    write_atomically(path, page)

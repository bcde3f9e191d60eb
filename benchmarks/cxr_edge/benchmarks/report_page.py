"""The demo's report: one self-contained HTML page."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_edge.benchmarks.latency import STAGES
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.benchmarks.demo import DemoResult


def write_page(path: Path, result: DemoResult) -> None:
    """Render the report; pictures are embedded, so that the page can be sent as it is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_edge.benchmarks", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["embed"] = lambda png: "data:image/png;base64," + b64encode(png).decode()
    curves = (result.run / "curves.png").read_bytes()
    page = environment.get_template("report.html.j2").render(result=result, curves=curves, stages=STAGES)
    write_atomically(path, page)

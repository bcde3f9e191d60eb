"""What `verify` found as one self-contained HTML page, with the flipped images seen by both sides."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cxr_edge.export.flips import Flip
from cxr_edge.export.plots import draw_changes, draw_layers, draw_probabilities
from cxr_edge.export.report import COLUMNS, cells, preprocessing_line, summary
from cxr_edge.export.verify import FileResult, Verification
from cxr_edge.runtime.dataset import CLASSES
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.gradcam import overlay
from cxr_edge.runtime.image import read_image

#: Flipped images that are shown of each file: those whose probability changed most.
SHOWN = 12


@dataclass(frozen=True)
class Shown:
    """A flipped image: its heatmap pictures as JPEG, by the trained network and by the file."""

    name: str
    truth: str
    flip: Flip
    reference: bytes
    file: bytes


def write_page(path: Path, verification: Verification) -> None:
    """Render the page; pictures are embedded, so that it can be sent as it is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_edge.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = _embed
    environment.globals |= {"cells": cells, "summary": summary, "preprocessing_line": preprocessing_line}
    ran = [result for result in verification.files if result.outputs]
    page = environment.get_template("verification.html.j2").render(
        verification=verification,
        columns=COLUMNS,
        plots=_plots(verification, ran),
        flipped={result.file.path: flipped(verification, result) for result in ran},
        layers={result.file.path: draw_layers(result.layers) for result in ran if result.layers},
    )
    write_atomically(path, page)


def flipped(verification: Verification, result: FileResult) -> list[Shown]:
    """The flipped images of a file with both heatmaps, up to `SHOWN`."""
    assert result.outputs is not None
    shown = []
    for flip in result.flips[:SHOWN]:
        image = verification.samples[flip.row]
        theirs, mine = (outputs.heatmap[flip.row] for outputs in (verification.reference, result.outputs))
        pictures = (
            _picture(verification, image.path, theirs, f"trained network  p={flip.reference:.3f}"),
            _picture(verification, image.path, mine, f"{result.file.path}  p={flip.file:.3f}"),
        )
        shown.append(Shown(image.key, CLASSES[image.label], flip, *pictures))
    return shown


def _plots(verification: Verification, ran: Sequence[FileResult]) -> dict[str, bytes]:
    names = [result.file.path for result in ran]
    probabilities = [result.outputs.probability for result in ran if result.outputs]
    expected = verification.reference.probability
    points = verification.manifest.operating_points
    drawn = {"Change of the probability": draw_changes(expected, dict(zip(names, probabilities, strict=True)))}
    for name, probability in zip(names, probabilities, strict=True):
        drawn[name] = draw_probabilities(expected, probability, points)
    return drawn if ran else {}


def _picture(verification: Verification, path: Path, heatmap: FloatArray, caption: str) -> bytes:
    manifest = verification.manifest
    picture = overlay(read_image(path), np.nan_to_num(heatmap), manifest.heatmap, manifest.input, caption)
    _, data = cv2.imencode(".jpeg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data.tobytes())


def _embed(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + b64encode(picture).decode()

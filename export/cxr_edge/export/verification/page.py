"""Results of `verify` as a self-contained HTML page, with both heatmaps of each flipped image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.figures import encode_jpeg
from cxr_edge.common.pages import render_page
from cxr_edge.export.verification.parity import Flip
from cxr_edge.export.verification.plots import draw_changes, draw_layers, draw_probabilities
from cxr_edge.export.verification.report import COLUMNS, cells, preprocessing_line, summary
from cxr_edge.export.verification.verify import FileResult, Verification
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.explanation.gradcam import overlay
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.imaging.image import read_image

#: Number of flipped images shown for each file: those whose probability changed most.
SHOWN = 12
#: JPEG quality of the pictures.
QUALITY = 80


@dataclass(frozen=True)
class FlippedImage:
    """A flipped image, with the heatmaps of the trained network and of the file as JPEG."""

    name: str
    truth: str
    flip: Flip
    reference: bytes
    file: bytes


def write_page(path: Path, verification: Verification) -> None:
    """Write the page. Pictures are embedded in it."""
    ran = [result for result in verification.files if result.outputs]
    page = render_page(
        "cxr_edge.export",
        "verification.html.j2",
        cells=cells,
        summary=summary,
        preprocessing_line=preprocessing_line,
        verification=verification,
        columns=COLUMNS,
        plots=_plots(verification, ran),
        flipped={result.file.path: flipped(verification, result) for result in ran},
        layers={result.file.path: draw_layers(result.layers) for result in ran if result.layers},
    )
    write_atomically(path, page)


def flipped(verification: Verification, result: FileResult) -> list[FlippedImage]:
    """Up to `SHOWN` flipped images of a file, with both heatmaps."""
    assert result.outputs is not None
    shown = []
    for flip in result.flips[:SHOWN]:
        image = verification.samples[flip.row]
        theirs, mine = (outputs.heatmap[flip.row] for outputs in (verification.reference, result.outputs))
        pictures = (
            _picture(verification, image.path, theirs, f"trained network  p={flip.reference:.3f}"),
            _picture(verification, image.path, mine, f"{result.file.path}  p={flip.file:.3f}"),
        )
        shown.append(FlippedImage(image.key, CLASSES[image.label], flip, *pictures))
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
    return encode_jpeg(picture, QUALITY)

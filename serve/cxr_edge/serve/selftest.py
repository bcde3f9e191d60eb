"""The check that a worker makes before it answers: golden inputs of the bundle, else a test of plausibility."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_edge.runtime.bundles.fields import Document, read_limited
from cxr_edge.runtime.errors import EngineError, IntegrityError

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxr_edge.runtime.predictor import Predictor

#: Name of the folder that `cxr-edge export` writes.
GOLDEN = "golden"
LARGEST_GOLDEN = 16_000_000
REMEDY = "copy the whole bundle again, or delete the folder golden"
#: Largest difference between the probability and the sigmoid of logit / temperature; int8 files round both.
PLAUSIBLE = 0.02


def check_model(predictor: Predictor) -> str:
    """Run the model on known inputs and compare its outputs.

    Returns
    -------
    `golden` if the bundle has golden outputs for this file, else `plausible`: then only the ranges of the outputs, the
    relation of logit and probability, and the equality of two runs were checked.

    Raises
    ------
    EngineError
        If an output differs.
    IntegrityError
        If a golden file is damaged.
    """
    expected, folder = _golden(predictor), predictor.bundle.folder / GOLDEN
    if expected is None:
        _check_plausible(predictor)
        return "plausible"
    for name, outputs in expected["outputs"].items():
        _compare(predictor, _pixels(predictor, folder / f"{name}.bin"), outputs, expected["tolerance"], name)
    return "golden"


def _golden(predictor: Predictor) -> Mapping[str, Any] | None:
    """The entry of `golden.json` for the file in use; None if there is none."""
    path = predictor.bundle.folder / GOLDEN / "golden.json"
    if not path.is_file():
        return None
    document = Document(str(path), REMEDY)
    data = document.parse(read_limited(path, LARGEST_GOLDEN, REMEDY))
    entry = data.get("files", {}).get(predictor.file.path) if isinstance(data, dict) else None
    return entry if isinstance(entry, dict) and entry.get("sha256") == predictor.file.sha256 else None


def _pixels(predictor: Predictor, path: Path) -> npt.NDArray[np.uint8]:
    """Read an input as (1, height, width, 1) uint8."""
    feed = predictor.manifest.input
    content = read_limited(path, feed.height * feed.width, REMEDY)
    if len(content) != feed.height * feed.width:
        raise IntegrityError(f"{path}: {len(content)} bytes, expected {feed.height * feed.width}; {REMEDY}")
    return np.frombuffer(content, np.uint8).reshape(1, feed.height, feed.width, 1)


def _compare(
    predictor: Predictor, pixels: npt.NDArray[np.uint8], expected: Mapping[str, Any],
    tolerance: Mapping[str, float], name: str,
) -> None:  # fmt: skip
    found = predictor.engine.run(pixels)
    for output, values in expected.items():
        difference = float(np.abs(getattr(found, output)[0] - np.asarray(values, np.float32)).max())
        if not difference <= tolerance[output]:
            raise EngineError(
                f"{predictor.file.path}: output {output} of the golden input {name} differs by {difference:.3g}, "
                f"expected at most {tolerance[output]:.3g}; this engine computes "
                "something else here: run `cxr-edge verify`"
            )


def _check_plausible(predictor: Predictor) -> None:
    feed = predictor.manifest.input
    ramp = np.arange(feed.height * feed.width, dtype=np.uint32) * 255 // (feed.height * feed.width)
    pixels = ramp.astype(np.uint8).reshape(1, feed.height, feed.width, 1)
    first, second = predictor.engine.run(pixels), predictor.engine.run(pixels)
    probability, logit = float(first.probability[0]), float(first.logit[0])
    wanted = 1 / (1 + math.exp(-logit / predictor.manifest.temperature))
    same = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in first.given)
    if not (same and abs(probability - wanted) <= PLAUSIBLE and np.isfinite(first.heatmap).all()):
        raise EngineError(
            f"{predictor.file.path}: the answer to a test image is not plausible (probability {probability:.4f}, logit "
            f"{logit:.4f}, equal when repeated: {same}); run `cxr-edge doctor` and `cxr-edge verify`"
        )

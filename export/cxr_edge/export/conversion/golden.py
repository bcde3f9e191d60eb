"""Golden inputs and outputs, with which an app checks that it feeds its TFLite file correctly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.export.conversion.formats import gate_of
from cxr_edge.runtime.bundles.bundle import Manifest, ModelFile, sha256
from cxr_edge.runtime.engines.litert import LiteRTEngine

SCHEMA_VERSION = 1
GOLDEN = "golden"
#: Gate -> tolerance for an output on another device, relative to its largest value or to 1, whichever is larger.
#: LiteRT with and without XNNPACK differ by up to 2e-6 in fp32 and fp16, and by up to 0.05 in int8.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-4, "int8": 0.05}


def draw_inputs(height: int, width: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Draw three pictures: a chest with an opacity in one lung, a gradient, and noise. No patient's image is used.

    None is symmetric, so that a flipped, transposed or rescaled input gives other outputs.

    Returns
    -------
    Name -> (height, width) uint8.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    gradient = 255 * (0.7 * columns / (width - 1) + 0.3 * (rows / (height - 1)) ** 2)
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return {
        "chest": _draw_chest(height, width),
        "gradient": gradient.round().astype(np.uint8),
        "noise": noise.repeat(8, axis=0).repeat(8, axis=1)[:height, :width],
    }


def _draw_chest(height: int, width: int) -> npt.NDArray[np.uint8]:
    picture = np.full((height, width), 20, np.uint8)

    def ellipse(x: float, y: float, half_width: float, half_height: float, brightness: int) -> None:
        centre, axes = (round(x * width), round(y * height)), (round(half_width * width), round(half_height * height))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, brightness, cv2.FILLED)

    ellipse(0.50, 0.60, 0.46, 0.58, 150)  # trunk
    ellipse(0.29, 0.48, 0.16, 0.34, 60)  # lungs
    ellipse(0.71, 0.48, 0.16, 0.34, 60)
    ellipse(0.56, 0.60, 0.15, 0.18, 190)  # heart
    ellipse(0.28, 0.62, 0.12, 0.14, 140)  # opacity
    cv2.rectangle(picture, (round(0.47 * width), 0), (round(0.53 * width), height), 200, cv2.FILLED)  # spine
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), width / 56), np.uint8)


def write_golden(bundle: Path, files: list[ModelFile], facts: Manifest) -> None:
    """Write `golden/`: three inputs, as PNG and as the raw bytes to feed, and the outputs of each TFLite file.

    Parameters
    ----------
    bundle
        Folder of the files.
    files
        The files that LiteRT runs.
    facts
        Their input and outputs.
    """
    folder = bundle / GOLDEN
    folder.mkdir()
    inputs = draw_inputs(facts.input.height, facts.input.width)
    for name, picture in inputs.items():
        (folder / f"{name}.bin").write_bytes(picture.tobytes())
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    content = {
        "schema_version": SCHEMA_VERSION,
        "inputs": {name: {"sha256": sha256(folder / f"{name}.bin")} for name in inputs},
        "files": {file.path: _expect(bundle, file, facts, inputs) for file in files},
    }
    (folder / "golden.json").write_text(json.dumps(content, indent=2) + "\n")


def _expect(
    bundle: Path, file: ModelFile, facts: Manifest, inputs: Mapping[str, npt.NDArray[np.uint8]]
) -> dict[str, object]:
    engine = LiteRTEngine(bundle / file.path, facts.input, lungs=facts.lungs)
    found = engine.run(np.stack(list(inputs.values()))[..., np.newaxis])
    outputs = {name: getattr(found, name) for name in found.given}
    share = TOLERANCE[gate_of(file.precision)]
    return {
        "sha256": file.sha256,
        "tolerance": {output: share * max(1.0, float(np.abs(values).max())) for output, values in outputs.items()},
        "outputs": {
            name: {output: values[row].tolist() for output, values in outputs.items()}
            for row, name in enumerate(inputs)
        },
    }

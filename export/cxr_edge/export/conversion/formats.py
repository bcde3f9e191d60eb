"""The table of file formats: one row for each file that `export` can write, and the function that writes it.

A new format is a function and a row of `FORMATS`. The functions import what they need themselves, because
`cxr-edge --help` loads this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cxr_edge.export.conversion.source import Source
    from cxr_edge.runtime.bundles.bundle import InputContract, Manifest
    from cxr_edge.runtime.engines import Engine

#: Writes one file: (network, facts that go inside the file and list it in `files`, path).
Writer = Callable[["Source", "Manifest", Path], None]


@dataclass(frozen=True)
class Format:
    """One kind of model file.

    Attributes
    ----------
    name
        File name in the bundle. Its suffix says which engine runs it.
    precision
        What the manifest calls it, and what users choose it by. An identifier such as `int8`.
    write
        Writes the file.
    role
        The field of the manifest that lists it. `files` decide, the `gradient` only explains. `companions` are made
        for other clients: `export` writes them only when they are named, and the runtime does not decide with them.
    calibrated
        Whether writing it takes calibration radiographs.
    gate
        The gate of `verify` that the precision is held to; None means the one with the name of the precision.
    open_engine
        Opens a file whose input or outputs are not those of the deployment graph; None for all others.
    """

    name: str
    precision: str
    write: Writer
    role: Literal["files", "companions", "gradient"] = "files"
    calibrated: bool = False
    gate: str | None = None
    open_engine: Callable[[Path, InputContract, int], Engine] | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the file name."""
        return Path(self.name).suffix


def _fp32_onnx(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.onnx import write_onnx

    write_onnx(source.onnx, path, _text(facts))


def _fp16_onnx(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.onnx import to_fp16, write_onnx

    write_onnx(to_fp16(source.onnx), path, _text(facts))


def _int8_onnx(source: Source, facts: Manifest, path: Path, symmetric: bool = False) -> None:
    from cxr_edge.export.conversion.onnx import REDUCED, onnx_from_keras, to_int8, write_onnx
    from cxr_edge.export.conversion.quantize import FULL, finest_integer_map

    rounded = onnx_from_keras(source.deployed(FULL if symmetric else REDUCED))
    write_onnx(to_int8(rounded, source.pixels, finest_integer_map(source.network), symmetric), path, _text(facts))


def _symmetric_onnx(source: Source, facts: Manifest, path: Path) -> None:
    _int8_onnx(source, facts, path, symmetric=True)


def _gradient(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.gradient import gradient_model
    from cxr_edge.export.conversion.onnx import write_onnx

    write_onnx(gradient_model(source.onnx), path, _text(replace(facts, files=(), gradient=facts.files[0])))


def _float_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.tflite import tflite_from_keras, write_tflite

    flatbuffer = tflite_from_keras(source.deployed(), facts.files[0].precision)
    write_tflite(flatbuffer, path, _text(facts), facts.classes)


def _int8_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.quantize import FULL, float_layers
    from cxr_edge.export.conversion.tflite import tflite_from_keras, to_int8, write_tflite

    exact = tflite_from_keras(source.deployed(FULL))
    write_tflite(to_int8(exact, source.pixels, float_layers(source.network)), path, _text(facts), facts.classes)


def _mediapipe_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.mediapipe import classifier_model
    from cxr_edge.export.conversion.tflite import tflite_from_keras, write_tflite

    flatbuffer = tflite_from_keras(classifier_model(source.deployed(input_dtype="float32")))
    own = replace(facts, input=replace(facts.input, channels=3), files=(), companions=facts.files)
    write_tflite(flatbuffer, path, _text(own), facts.classes)


def _open_mediapipe(path: Path, contract: InputContract, threads: int) -> Engine:
    from cxr_edge.export.conversion.mediapipe import ClassifierEngine

    return ClassifierEngine(path, contract, threads)


def _text(facts: Manifest) -> str:
    return json.dumps(asdict(facts))


FORMATS = (
    Format("model.onnx", "fp32", _fp32_onnx),
    Format("model.fp16.onnx", "fp16", _fp16_onnx),
    Format("model.fp32.tflite", "fp32", _float_tflite),
    Format("model.fp16.tflite", "fp16", _float_tflite),
    Format("model.int8.onnx", "int8", _int8_onnx, calibrated=True),
    Format("model.int8.tflite", "int8", _int8_tflite, calibrated=True),
    # Integrated gradients need it.
    Format("gradient.onnx", "fp32", _gradient, role="gradient"),
    # For MediaPipe Tasks and ML Kit. In fp32, because without the output `logit` the converter folds the temperature
    # into the weights, and fp16 would round them.
    Format("model.mediapipe.tflite", "fp32", _mediapipe_tflite, role="companions", open_engine=_open_mediapipe),
    # For TensorRT's int8, which needs symmetric ranges.
    Format("model.int8.symmetric.onnx", "int8", _symmetric_onnx, role="companions", calibrated=True),
)
#: File name -> row.
BY_NAME = {row.name: row for row in FORMATS}
#: Names of the files that `export` writes unless told otherwise.
FILES = tuple(row.name for row in FORMATS if row.role != "companions")
#: The precisions that can be chosen.
PRECISIONS = tuple(dict.fromkeys(row.precision for row in FORMATS))


def gate_of(precision: str) -> str:
    """Name of the gate that files of a precision are held to."""
    return next((row.gate for row in FORMATS if row.precision == precision and row.gate), precision)

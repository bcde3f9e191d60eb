"""The table of file formats: one row for each file that `export` can write, and the function that writes it.

A new format is a function and a row of `FORMATS`. The functions import what they need themselves, because
`cxr-edge --help` loads this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx

    from cxr_edge.export.conversion.source import Source
    from cxr_edge.runtime.bundles.bundle import InputContract, LungGrid, Manifest
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
        Identifier by which users choose the file. Two `files` with the same suffix need different ones.
    role
        Field of the manifest that lists it. `files` decide. The `gradient` only explains. `companions` are for other
        clients: `export` writes them only when they are named, and the runtime does not decide with them.
    calibrated
        Whether it needs calibration radiographs.
    gate
        Gate of `verify` for this precision; None means the gate with the same name.
    open_engine
        Opens a file that the runtime's engines would not compute as its clients do; None for all others.
    """

    name: str
    precision: str
    write: Writer
    role: Literal["files", "companions", "gradient"] = "files"
    calibrated: bool = False
    gate: str | None = None
    open_engine: Callable[[Path, InputContract, int, LungGrid | None], Engine] | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the file name."""
        return Path(self.name).suffix


def _fp32_onnx(source: Source, facts: Manifest, path: Path) -> None:
    _write_onnx(source.onnx, facts, path)


def _fp16_onnx(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.onnx import to_fp16

    _write_onnx(to_fp16(source.onnx), facts, path)


def _int8_onnx(source: Source, facts: Manifest, path: Path, symmetric: bool = False) -> None:
    from cxr_edge.export.conversion import onnx, quantize

    rounded = onnx.onnx_from_keras(source.deployed(quantize.FULL if symmetric else onnx.REDUCED))
    finest = quantize.finest_integer_map(source.network)
    _write_onnx(onnx.to_int8(rounded, source.pixels, finest, symmetric), facts, path)


def _gradient_onnx(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.gradient import gradient_model

    _write_onnx(gradient_model(source.onnx), replace(facts, files=(), gradient=facts.files[0]), path)


def _write_onnx(model: onnx.ModelProto, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.onnx import write_onnx

    write_onnx(model, path, json.dumps(asdict(facts)))


def _float_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.tflite import tflite_from_keras

    _write_tflite(tflite_from_keras(source.deployed(split=True), facts.files[0].precision), facts, path)


def _int8_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion import quantize, tflite

    exact = tflite.tflite_from_keras(source.deployed(quantize.FULL, split=True))
    _write_tflite(tflite.to_int8(exact, source.pixels, quantize.float_layers(source.network)), facts, path)


def _mediapipe_tflite(source: Source, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion import mediapipe, tflite

    own = replace(facts, input=replace(facts.input, channels=3), files=(), companions=facts.files)
    classifier = mediapipe.classifier_model(source.deployed(input_dtype="float32", split=True))
    _write_tflite(tflite.tflite_from_keras(classifier), own, path)


def _write_tflite(flatbuffer: bytes, facts: Manifest, path: Path) -> None:
    from cxr_edge.export.conversion.tflite import write_tflite

    write_tflite(flatbuffer, path, json.dumps(asdict(facts)), facts.classes)


def _open_mediapipe(path: Path, contract: InputContract, threads: int, lungs: LungGrid | None) -> Engine:
    from cxr_edge.export.conversion.mediapipe import ClassifierEngine

    return ClassifierEngine(path, contract, threads, lungs)


def _open_symmetric(path: Path, contract: InputContract, threads: int, lungs: LungGrid | None) -> Engine:
    from cxr_edge.runtime.engines.onnx import OnnxEngine

    return OnnxEngine(path, contract, threads, lungs, wide=True)  # TensorRT adds in 32 bits


FORMATS = (
    Format("model.onnx", "fp32", _fp32_onnx),
    Format("model.fp16.onnx", "fp16", _fp16_onnx),
    Format("model.fp32.tflite", "fp32", _float_tflite),
    Format("model.fp16.tflite", "fp16", _float_tflite),
    Format("model.int8.onnx", "int8", _int8_onnx, calibrated=True),
    Format("model.int8.tflite", "int8", _int8_tflite, calibrated=True),
    # Integrated gradients need it.
    Format("gradient.onnx", "fp32", _gradient_onnx, role="gradient"),
    # For MediaPipe Tasks and ML Kit. In fp32, because without the output `logit` the converter folds the temperature
    # into the weights, and fp16 would round them.
    Format("model.mediapipe.tflite", "fp32", _mediapipe_tflite, role="companions", open_engine=_open_mediapipe),
    # For TensorRT's int8, which needs symmetric ranges.
    Format(
        "model.int8.symmetric.onnx",
        "int8",
        partial(_int8_onnx, symmetric=True),
        "companions",
        calibrated=True,
        open_engine=_open_symmetric,
    ),
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

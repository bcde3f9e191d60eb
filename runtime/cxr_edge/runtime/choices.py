"""Choices and limits of the command-line options, in a module that `--help` can import quickly."""

from __future__ import annotations

from typing import NamedTuple


class EngineRow(NamedTuple):
    """An engine: `module:class`, the library it needs, the extra that installs it, the suffix of its exported files."""

    implementation: str
    library: str
    extra: str
    suffix: str | None


#: Engines, in the order of preference of `auto`. A TensorRT plan exists only if it was built on this device; it is not
#: exported. LiteRT starts faster and needs less memory than ONNX Runtime.
ENGINES = {
    "tensorrt": EngineRow("cxr_edge.runtime.engines.tensorrt:TensorRTEngine", "tensorrt", "tensorrt", None),
    "litert": EngineRow("cxr_edge.runtime.engines.litert:LiteRTEngine", "ai_edge_litert", "tflite", ".tflite"),
    "onnx": EngineRow("cxr_edge.runtime.engines.onnx:OnnxEngine", "onnxruntime", "onnx", ".onnx"),
}
#: Precisions that `auto` prefers, the most exact first. A bundle may have files of others (see `manifest.Precision`).
PRECISIONS = ("fp32", "fp16", "int8")
#: Methods that explain a decision.
METHODS = ("gradcam", "ig")
#: Start of the path of integrated gradients: the blurred image, or black. From black, brightness moves the attributions
#: to spine and abdomen; from the blurred image they lie on the contours of heart, diaphragm and vessels.
BASELINES = ("blur", "black")
#: Maximum number of steps along that path.
MAX_STEPS = 256
#: Maximum number of pixels of an image file. The largest radiographs have about 20 million.
MAX_PIXELS = 100_000_000

"""What users choose from, in a module that `--help` can import without numpy, OpenCV or an engine."""

from __future__ import annotations

#: Engines, in the order in which `auto` prefers them.
ENGINE_NAMES = ("tensorrt", "litert", "onnx")
#: Precisions that `auto` prefers, the most exact first. A bundle may have files of others (see `manifest.Precision`).
PRECISIONS = ("fp32", "fp16", "int8")
#: How a decision can be explained.
METHODS = ("gradcam", "ig")
#: Where the path of integrated gradients starts: the blurred image, or black. From black, brightness moves the
#: attributions to spine and abdomen; from the blurred image they lie on the contours of heart, diaphragm and vessels.
BASELINES = ("blur", "black")
#: Most steps along that path.
MAX_STEPS = 256
#: Most pixels of an image file. The largest radiographs have about 20 million.
MAX_PIXELS = 100_000_000

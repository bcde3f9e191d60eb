"""Choices and limits of the command-line options, in a module that `--help` can import quickly."""

from __future__ import annotations

#: Engines, in the order of preference of `auto`.
ENGINE_NAMES = ("tensorrt", "litert", "onnx")
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

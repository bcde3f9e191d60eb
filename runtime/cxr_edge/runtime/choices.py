"""What users choose from by name: `--help` shows it without importing the modules that do the work.

`tests/runtime/test_startup.py` holds both to each other.
"""

from __future__ import annotations

#: Engines, in the order in which `auto` prefers them.
ENGINE_NAMES = ("tensorrt", "litert", "onnx")
#: Precisions of model files, the most exact first.
PRECISIONS = ("fp32", "fp16", "int8")
#: How a decision can be explained.
METHODS = ("gradcam", "ig")
#: Images from which the path of integrated gradients starts.
BASELINES = ("blur", "black")
#: Most steps along that path.
MAX_STEPS = 256

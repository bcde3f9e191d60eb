"""The runtime: numpy, OpenCV, click and one engine.

>>> from cxr_edge.runtime import load
>>> predictor = load("bundle")                            # doctest: +SKIP
>>> predictor.predict("xray.jpg").label                   # doctest: +SKIP
'PNEUMONIA'
"""

import os

# ONNX Runtime (1.29 and later) reports what it runs to its maker over the network, from a thread of its own that also
# hangs every forked process when it ends. It reads this variable once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from cxr_edge.runtime.bundle import Bundle, Manifest
from cxr_edge.runtime.errors import (
    BundleError,
    CxrEdgeError,
    DataError,
    EngineError,
    ImageError,
    IntegrityError,
    MissingDecoderError,
    MissingExtraError,
    UsageError,
)
from cxr_edge.runtime.predictor import Explanation, Prediction, Predictor, load

__all__ = [
    "Bundle",
    "BundleError",
    "CxrEdgeError",
    "DataError",
    "EngineError",
    "Explanation",
    "ImageError",
    "IntegrityError",
    "Manifest",
    "MissingDecoderError",
    "MissingExtraError",
    "Prediction",
    "Predictor",
    "UsageError",
    "load",
]

"""The runtime: numpy, OpenCV, click and one engine.

>>> from cxr_edge.runtime import load
>>> predictor = load("bundle")                            # doctest: +SKIP
>>> predictor.predict("xray.jpg").label                   # doctest: +SKIP
'PNEUMONIA'
"""

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

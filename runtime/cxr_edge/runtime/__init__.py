"""Public interface of the runtime, which needs numpy, OpenCV, simplejpeg, click and one engine.

>>> from cxr_edge.runtime import load
>>> predictor = load("bundle")                            # doctest: +SKIP
>>> predictor.predict("xray.jpg").label                   # doctest: +SKIP
'PNEUMONIA'

The names below are imported when they are first used (PEP 562): `cxr-edge --help` loads neither numpy nor OpenCV.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_edge.runtime.bundles.bundle import Bundle, Manifest
    from cxr_edge.runtime.errors import (
        BundleError,
        CalibrationError,
        CxrEdgeError,
        DataError,
        EngineError,
        ImageError,
        IntegrityError,
        MissingDecoderError,
        MissingExtraError,
        OutputError,
        UsageError,
    )
    from cxr_edge.runtime.prediction import Explanation, Prediction
    from cxr_edge.runtime.predictor import Predictor, load

# ONNX Runtime (1.29 and later) sends telemetry over the network from its own thread, which also makes forked processes
# hang when they end. It reads this variable once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Bundle",
    "BundleError",
    "CalibrationError",
    "CxrEdgeError",
    "DataError",
    "EngineError",
    "Explanation",
    "ImageError",
    "IntegrityError",
    "Manifest",
    "MissingDecoderError",
    "MissingExtraError",
    "OutputError",
    "Prediction",
    "Predictor",
    "UsageError",
    "load",
]

#: Modules of the public names; all other names are errors.
_MODULES = {
    "Bundle": "bundles.bundle",
    "Manifest": "bundles.bundle",
    "Explanation": "prediction",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "load": "predictor",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value  # later accesses do not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

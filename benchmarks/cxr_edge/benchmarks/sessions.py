"""ONNX Runtime without this package around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def onnx_session(model: Path | bytes, threads: int, **settings: Any) -> Any:
    """An `InferenceSession` on the processor, with so many threads and other fields of its `SessionOptions`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": threads, **settings}.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

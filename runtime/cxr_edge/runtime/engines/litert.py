"""LiteRT (TensorFlow Lite) with its XNNPACK delegate."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import InputContract
from cxr_edge.runtime.engines.base import OUTPUTS, Outputs, check_signature
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError
from cxr_edge.runtime.quiet import quiet_native_stderr


class LiteRTEngine:
    """A TFLite file in LiteRT, on the CPU."""

    backend = "CPU, XNNPACK delegate"

    def __init__(self, path: Path, contract: InputContract, threads: int = 1) -> None:
        self._interpreter, self._run = open_signature(path, contract, threads)
        self._input = contract.name

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`; one image at a time, because another batch size would rebuild the delegate."""
        rows = [self._run(**{self._input: image[np.newaxis]}) for image in images]
        return Outputs(*(np.concatenate([row[name] for row in rows]) for name in OUTPUTS))


def open_signature(
    path: Path, contract: InputContract, threads: int, needed: Collection[str] = OUTPUTS
) -> tuple[Any, Any]:
    """Load a TFLite file: its interpreter, which must be kept, and what runs it, input by name -> outputs by name.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        If the file cannot be loaded, lacks an output, or would be fed wrongly; if XNNPACK or LiteRT is not there.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise MissingExtraError("tflite", error.name) from error
    try:
        with quiet_native_stderr():
            interpreter = Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
        # By signature: the converter reorders outputs.
        run = interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: not a model that LiteRT can load ({error})") from error
    # Without its delegate LiteRT runs reference kernels, several times slower, and says nothing.
    if not any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details()):
        raise EngineError(f"{path}: the XNNPACK delegate took no part of the graph; install another ai-edge-litert")
    name, details = next(iter(run.get_input_details().items()))
    dtype, shape = np.dtype(details["dtype"]).name, tuple(int(n) for n in details["shape"])
    check_signature(path, contract, name, dtype, shape, set(run.get_output_details()), needed)
    return interpreter, run

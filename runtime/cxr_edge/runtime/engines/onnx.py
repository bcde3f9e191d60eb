"""The engine that runs ONNX files with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.engines.base import OUTPUTS, Outputs, check_signature
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import onnxruntime

DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
#: Execution providers, in order of preference. The first one that the installed ONNX Runtime offers must run the model.
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxEngine:
    """An ONNX file in ONNX Runtime, on the first of `PROVIDERS` that is available.

    A session runs any number of calls at the same time. The calls share the threads of the session.
    """

    def __init__(self, path: Path, contract: InputContract, threads: int = 1) -> None:
        self._session = open_session(path, threads)
        entry = self._session.get_inputs()[0]
        check_signature(
            path, contract, entry.name, DTYPES.get(entry.type, entry.type), tuple(entry.shape),
            {output.name for output in self._session.get_outputs()},
        )  # fmt: skip
        self.backend = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self._input = entry.name

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        return Outputs(*self._session.run(OUTPUTS, {self._input: images}))


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load an ONNX file on the first of `PROVIDERS` that is available.

    Raises
    ------
    BundleError
        If ONNX Runtime cannot load the file.
    EngineError
        If ONNX Runtime falls back to another provider.
    MissingExtraError
        If ONNX Runtime is not installed.
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", error.name) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = [provider for provider in PROVIDERS if provider in ort.get_available_providers()]
    try:
        session = ort.InferenceSession(path, options, providers=wanted)
    except Exception as error:  # onnxruntime's own hierarchy derives from Exception alone
        raise BundleError(f"{path}: not a model that ONNX Runtime can load ({error})") from error
    # ONNX Runtime falls back to the CPU silently if a provider cannot start.
    if (found := session.get_providers()[0]) != wanted[0]:
        raise EngineError(
            f"{path}: ONNX Runtime runs on {found}, but {wanted[0]} was expected; check the libraries of that provider "
            "(for CUDA: CUDA and cuDNN), or install 'cxr-edge[onnx]' for the CPU"
        )
    return session

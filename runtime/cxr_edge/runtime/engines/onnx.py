"""The engine that runs ONNX files with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract, LungGrid
from cxr_edge.runtime.engines.base import Outputs, check_signature, given_outputs
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import onnxruntime

#: Execution providers, the preferred one first, and what to do where one of them does not start. A session runs on the
#: first one that this build of ONNX Runtime has.
PROVIDERS = {
    "CUDAExecutionProvider": "check the CUDA and cuDNN libraries, or install 'cxr-edge[onnx]' for the CPU",
    "CPUExecutionProvider": "install onnxruntime again",
}
#: Option of a session that adds the products of int8 weights in 32 bits on every CPU. x86 CPUs without VNNI otherwise
#: add pairs of them in 16 bits, which is faster, and which weights of 8 bits overflow. A bundle's `files` have 7.
WIDE_SUMS = ("session.x64quantprecision", "1")
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxEngine:
    """An ONNX file in ONNX Runtime, on the first of `PROVIDERS` that this build of it has.

    Any number of threads may call a session at the same time; the calls share its threads.
    """

    def __init__(
        self, path: Path, contract: InputContract, threads: int = 1, lungs: LungGrid | None = None, wide: bool = False
    ) -> None:
        self._session = open_session(path, threads, wide)
        entry = self._session.get_inputs()[0]
        outputs = {output.name: tuple(output.shape) for output in self._session.get_outputs()}
        dtype = DTYPES.get(entry.type, entry.type)
        check_signature(path, contract, entry.name, dtype, tuple(entry.shape), outputs, lungs)
        self._given = given_outputs(outputs, lungs)
        self.backend = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self._input = entry.name

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        values = self._session.run(self._given, {self._input: images})
        return Outputs(**dict(zip(self._given, values, strict=True)))


def open_session(path: Path, threads: int, wide: bool = False) -> onnxruntime.InferenceSession:
    """Load an ONNX file on the first of `PROVIDERS` that this ONNX Runtime has.

    Parameters
    ----------
    wide
        Whether to set `WIDE_SUMS`.

    Raises
    ------
    BundleError
        If it is not a model.
    EngineError, MissingExtraError
        If ONNX Runtime falls back to another provider, or is not installed.
    """
    try:
        with quiet_native_stderr():  # its import prints a warning on ARM processors whose vendor it does not know
            import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", error.name) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if wide:
        options.add_session_config_entry(*WIDE_SUMS)
    available = ort.get_available_providers()
    wanted = [provider for provider in PROVIDERS if provider in available]
    try:
        session = ort.InferenceSession(path, options, providers=wanted)
    except Exception as error:  # onnxruntime's own hierarchy derives from Exception alone
        raise BundleError(f"{path}: not a model that ONNX Runtime can load ({error})") from error
    # ONNX Runtime falls back to the CPU silently when a provider cannot start.
    if (actual := session.get_providers()[0]) != wanted[0]:
        raise EngineError(f"ONNX Runtime was built for {wanted[0]} but runs on {actual}: {PROVIDERS[wanted[0]]}")
    return session

"""LiteRT's own profiler, through the C interface of the library that its Python package contains.

The Python package offers no profiler. The C interface does (litert/c/litert_profiler.h): the time of each operator that
the XNNPACK delegate runs.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import EngineError, MissingExtraError
from cxr_edge.runtime.quiet import quiet_native_stderr

LIBRARY = "libLiteRt.so"
#: kLiteRtHwAcceleratorCpu, and kLiteRtTensorBufferLockModeWrite.
CPU, WRITE = 1, 1
#: Large enough for a LiteRtRankedTensorType.
TENSOR_TYPE_BYTES = 512
#: DELEGATE_OPERATOR_INVOKE_EVENT and DELEGATE_PROFILED_OPERATOR_INVOKE_EVENT.
OF_DELEGATE = (1 << 2, 1 << 3)
_DESTRUCTOR = ctypes.CFUNCTYPE(None, c_void_p)


def profile_litert(file: Path, image: npt.NDArray[np.uint8], threads: int, runs: int) -> list[tuple[str, list[float]]]:
    """Operators in the order in which they run: type, and milliseconds of each run.

    Parameters
    ----------
    image
        (1, H, W, 1) uint8.

    Raises
    ------
    EngineError, MissingExtraError
        If this LiteRT is missing, has another C interface, or reports no operators.
    """
    with quiet_native_stderr():
        session = _Session(file, threads)
        session.write(image)
        for _ in range(5):
            session.run()
        rows = [session.profiled() for _ in range(runs)]
    if not rows[0] or len({len(row) for row in rows}) != 1:
        raise EngineError(
            f"{file}: LiteRT's profiler reports no operators of its delegate; install another ai-edge-litert"
        )
    return [(rows[0][i][0], [row[i][1] for row in rows]) for i in range(len(rows[0]))]


class _Event(ctypes.Structure):
    """ProfiledEventData of litert/c/litert_profiler_event.h, with the memory figures of TFLite."""

    _fields_ = (
        ("tag", c_char_p), ("kind", ctypes.c_int), ("start_us", ctypes.c_uint64), ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6), ("metadata", ctypes.c_uint64 * 2), ("source", ctypes.c_int),
    )  # fmt: skip


class _Session:
    """A compiled model with its buffers and its profiler; it lives until the process ends."""

    def __init__(self, file: Path, threads: int) -> None:
        self._file, self._library = file, _library()
        self._kept: list[Any] = []
        environment, model, options, self._model, self._profiler = (c_void_p() for _ in range(5))
        self._call("CreateEnvironment", 0, None, byref(environment))
        self._call("CreateModelFromFile", environment, str(file).encode(), byref(model))
        self._call("CreateOptions", byref(options))
        self._call("SetOptionsHardwareAccelerators", options, CPU)
        self._add_options(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._add_options(options, b"xnnpack", f"num_threads = {threads}\n".encode())
        self._call("CreateCompiledModel", environment, model, options, byref(self._model))
        self._call("CompiledModelGetProfiler", self._model, byref(self._profiler))
        self._inputs = self._buffers(environment, model, "Input")
        self._outputs = self._buffers(environment, model, "Output")

    def write(self, image: npt.NDArray[np.uint8]) -> None:
        """Copy an image to the first input."""
        address, content = c_void_p(), np.ascontiguousarray(image)
        self._call("LockTensorBuffer", c_void_p(self._inputs[0]), byref(address), WRITE)
        ctypes.memmove(address, content.ctypes.data, content.nbytes)
        self._call("UnlockTensorBuffer", c_void_p(self._inputs[0]))

    def run(self) -> None:
        """Run the network once."""
        ends = (c_size_t(len(self._inputs)), self._inputs, c_size_t(len(self._outputs)), self._outputs)
        self._call("RunCompiledModel", self._model, c_size_t(0), *ends)

    def profiled(self) -> list[tuple[str, float]]:
        """Run the network once: type and milliseconds of each operator of the delegate."""
        self._call("ResetProfiler", self._profiler)
        self._call("StartProfiler", self._profiler)
        self.run()
        self._call("StopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("GetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._call("GetProfilerEvents", self._profiler, count, events)
        return [(event.tag.decode(), event.elapsed_us / 1e3) for event in events if event.kind in OF_DELEGATE]

    def _add_options(self, options: c_void_p, name: bytes, toml: bytes) -> None:
        payload, keep, made = ctypes.create_string_buffer(toml), _DESTRUCTOR(lambda _: None), c_void_p()
        self._kept += [payload, keep]
        self._call("CreateOpaqueOptions", name, ctypes.cast(payload, c_void_p), keep, byref(made))
        self._call("AddOpaqueOptions", options, made)

    def _buffers(self, environment: c_void_p, model: c_void_p, end: str) -> Any:
        signature, count = c_void_p(), c_size_t()
        self._call("GetModelSignature", model, c_size_t(0), byref(signature))
        self._call(f"GetNumSignature{end}s", signature, byref(count))
        buffers = (c_void_p * count.value)()
        for index in range(count.value):
            tensor, needs, buffer = c_void_p(), c_void_p(), c_void_p()
            kind = ctypes.create_string_buffer(TENSOR_TYPE_BYTES)
            self._call(f"GetSignature{end}TensorByIndex", signature, c_size_t(index), byref(tensor))
            self._call("GetRankedTensorType", tensor, kind)
            self._call(
                f"GetCompiledModel{end}BufferRequirements", self._model, c_size_t(0), c_size_t(index), byref(needs)
            )
            self._call("CreateManagedTensorBufferFromRequirements", environment, kind, needs, byref(buffer))
            buffers[index] = buffer
        return buffers

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            status = getattr(self._library, f"LiteRt{name}")(*arguments)
        except AttributeError as error:
            raise EngineError(f"{LIBRARY} has no LiteRt{name}; install ai-edge-litert 2.3") from error
        if status:
            raise EngineError(
                f"{self._file}: LiteRt{name} returned status {status}, expected 0; install ai-edge-litert 2.3"
            )


def _library() -> ctypes.CDLL:
    try:
        import ai_edge_litert
    except ModuleNotFoundError as error:
        raise MissingExtraError("tflite", error.name) from error
    path = Path(ai_edge_litert.__file__).parent / LIBRARY
    if not path.is_file():
        raise EngineError(f"{path}: not found; LiteRT's profiler needs it. Install ai-edge-litert 2.3 for Linux")
    return ctypes.CDLL(str(path))

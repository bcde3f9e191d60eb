"""TensorRT: plans built on this very device by `cxr-edge export BUNDLE --format tensorrt`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import InputContract
from cxr_edge.runtime.engines.base import OUTPUTS, Outputs, check_signature
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError


@dataclass(frozen=True)
class Target:
    """What a plan is built for; it runs nowhere else."""

    tensorrt: str
    gpu: str
    compute_capability: str


def this_target() -> Target:
    """The TensorRT and the GPU of this machine.

    Raises
    ------
    MissingExtraError
        If TensorRT or cuda-bindings is not installed.
    EngineError
        If there is no GPU that CUDA can use.
    """
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cudart
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorrt", error.name) from error
    try:
        properties = _cuda(cudart.cudaGetDeviceProperties(0))
    except (EngineError, RuntimeError) as error:  # cuda-bindings raises RuntimeError where it finds no driver
        raise EngineError(f"TensorRT needs an NVIDIA GPU with its driver; none can be used here ({error})") from error
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Target(str(trt.__version__), name.rstrip("\0"), f"{properties.major}.{properties.minor}")


def sidecar_path(plan: Path) -> Path:
    """Where a plan's sidecar lies: what it was built of and for."""
    return plan.with_name(plan.name + ".json")


class TensorRTEngine:
    """A TensorRT plan on the GPU; device buffers are allocated once, for one image at a time."""

    def __init__(self, path: Path, contract: InputContract, threads: int = 1) -> None:
        here = this_target()
        built_for = json.loads(sidecar_path(path).read_text())["target"]
        if built_for != asdict(here):
            raise EngineError(
                f"{path}: built for {built_for}, this is {asdict(here)}; build it anew: "
                f"cxr-edge export {path.parent} --format tensorrt"
            )
        import tensorrt as trt
        from cuda.bindings import runtime as cudart

        self._cudart = cudart
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(f"{path}: TensorRT cannot load this plan; build it anew")
        self._keep = runtime, engine  # the context borrows both
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(inputs[0]))).name
        shape = tuple(engine.get_tensor_shape(inputs[0]))
        check_signature(path, contract, inputs[0], dtype, shape, set(names) - set(inputs))
        self._context = engine.create_execution_context()
        self._stream = _cuda(cudart.cudaStreamCreate())
        self._context.set_input_shape(inputs[0], (1, *shape[1:]))
        self._input = inputs[0]
        # Host arrays as the engine types them; the contract's float32 comes after the copy.
        self._host: dict[str, npt.NDArray[Any]] = {}
        self._device: dict[str, int] = {}
        for name in (*inputs, *OUTPUTS):
            host = np.empty(tuple(self._context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
            self._host[name] = host
            self._device[name] = _cuda(cudart.cudaMalloc(host.nbytes))
            self._context.set_tensor_address(name, self._device[name])
        self.backend = f"CUDA, {here.gpu}"

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        rows = [self._run_one(image) for image in images]
        return Outputs(*(np.concatenate([row[name] for row in rows]).astype(np.float32) for name in OUTPUTS))

    def _run_one(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        cudart, kind = self._cudart, self._cudart.cudaMemcpyKind
        self._host[self._input][0] = image
        self._copy(self._input, kind.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(self._stream):
            raise EngineError("TensorRT could not run the plan; build it anew")
        for name in OUTPUTS:
            self._copy(name, kind.cudaMemcpyDeviceToHost)
        _cuda(cudart.cudaStreamSynchronize(self._stream))
        return {name: self._host[name].copy() for name in OUTPUTS}

    def _copy(self, name: str, kind: Any) -> None:
        host, device = self._host[name], self._device[name]
        ends = (device, host.ctypes.data) if kind == self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice else (
            host.ctypes.data, device
        )  # fmt: skip
        _cuda(self._cudart.cudaMemcpyAsync(*ends, host.nbytes, kind, self._stream))

    def __del__(self) -> None:
        for address in getattr(self, "_device", {}).values():
            self._cudart.cudaFree(address)


def _cuda(result: Any) -> Any:
    """Value of a cuda-bindings call, which returns (error, value…); EngineError if it failed."""
    error, *values = result
    if int(error) != 0:
        raise EngineError(f"CUDA says {error.name if hasattr(error, 'name') else error}")
    return values[0] if values else None

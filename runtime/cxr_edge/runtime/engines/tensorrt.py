"""The engine that runs TensorRT plans, which `cxr-edge export BUNDLE --format tensorrt` builds on the device.

A plan is executable code for one release of TensorRT and one kind of GPU. Its sidecar records for which, and from what
it was built. Nothing is loaded that does not match its sidecar.
"""

from __future__ import annotations

import ctypes
import json
import platform
import re
import weakref
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import Bundle, InputContract, LungGrid, Manifest, ModelFile
from cxr_edge.runtime.bundles.fields import Document, Rule, read_limited
from cxr_edge.runtime.bundles.manifest import LARGEST_MANIFEST, FileName, Name, Sha256
from cxr_edge.runtime.engines.base import Outputs, check_signature, given_outputs
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import tensorrt as trt

#: Lowest major compute capability (Ampere) of GPUs that can run hardware-compatible plans.
AMPERE = 8
Release = Annotated[
    str,
    Rule('a version such as "10.3.0.26"', lambda version: bool(re.fullmatch(r"[0-9]+(\.[0-9A-Za-z+-]+)*", version))),
]


@dataclass(frozen=True)
class Target:
    """The environment of a plan: TensorRT release, GPU, operating system and processor."""

    tensorrt: Release
    gpu: Name
    compute_capability: Name
    platform: Name


@dataclass(frozen=True)
class PlanOptions:
    """Options with which a plan was built.

    Attributes
    ----------
    max_batch
        Maximum batch size, ≥ 1.
    version_compatible
        Whether later releases of the same major version can run it.
    hardware_compatible
        Whether every GPU from Ampere on (compute capability 8.0) can run it.
    """

    max_batch: Annotated[int, Rule("a whole number ≥ 1", lambda count: count >= 1)] = 1
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class Sidecar:
    """The record beside a plan: its hash, its target, the ONNX file it was built from, and the options."""

    file: ModelFile
    target: Target
    options: PlanOptions
    onnx: FileName
    onnx_sha256: Sha256
    strongly_typed: bool

    @classmethod
    def read(cls, plan: Path) -> Sidecar:
        """Read the sidecar of a plan.

        Raises
        ------
        BundleError
            If it is missing, or not in the format of this release of cxr-edge.
        """
        document = Document(str(sidecar_path(plan)), _rebuild(plan))
        data = document.parse(read_limited(sidecar_path(plan), LARGEST_MANIFEST, document.remedy))
        return document.build(cls, data)

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def differences(self, here: Target, manifest: Manifest) -> list[str]:
        """Reasons why the plan must not run on `here` with the bundle of `manifest`; empty if there are none."""
        found = []
        if not self._runs_on_release(here.tensorrt):
            found.append(f"built with TensorRT {self.target.tensorrt}, this is {here.tensorrt}")
        if not self._runs_on_gpu(here):
            built = f"{self.target.gpu} (compute capability {self.target.compute_capability})"
            found.append(f"built on {built}, this is {here.gpu} ({here.compute_capability})")
        if here.platform != self.target.platform:
            found.append(f"built on {self.target.platform}, this is {here.platform}")
        if self.onnx_sha256 not in [file.sha256 for file in manifest.files if file.path == self.onnx]:
            found.append(f"built of another {self.onnx} than the bundle's")
        return found

    def _runs_on_release(self, here: str) -> bool:
        """TensorRT promises that version-compatible plans run on later releases of the same major version."""
        if not self.options.version_compatible:
            return here == self.target.tensorrt
        built, now = _release(self.target.tensorrt), _release(here)
        return built[0] == now[0] and built <= now

    def _runs_on_gpu(self, here: Target) -> bool:
        if self.options.hardware_compatible:
            return int(here.compute_capability.split(".")[0]) >= AMPERE
        return (here.gpu, here.compute_capability) == (self.target.gpu, self.target.compute_capability)


def this_target() -> Target:
    """The TensorRT, the GPU and the platform of this machine.

    Raises
    ------
    MissingExtraError
        If TensorRT or cuda-bindings is not installed.
    EngineError
        If CUDA finds no GPU. Without this check, TensorRT returns objects that crash on use.
    """
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cudart
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorrt", error.name) from error
    try:
        properties = _cuda(cudart.cudaGetDeviceProperties(_cuda(cudart.cudaGetDevice())))
    except (EngineError, RuntimeError) as error:  # cuda-bindings 12 raises RuntimeError where it finds no driver
        raise EngineError(
            f"TensorRT needs an NVIDIA GPU with its driver; none can be used here ({error}). If there is one, install "
            "the cuda-bindings of its driver's CUDA, for JetPack 6: pip install 'cuda-bindings==12.*'"
        ) from error
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    capability = f"{properties.major}.{properties.minor}"
    return Target(trt.__version__, name.rstrip("\0"), capability, f"{platform.system()} {platform.machine()}")


def sidecar_path(plan: Path) -> Path:
    """Path of the sidecar of a plan."""
    return plan.with_name(plan.name + ".json")


@dataclass(frozen=True)
class _Buffer:
    """Memory of a tensor for the largest batch: a page-locked host array and an address on the device."""

    host: npt.NDArray[Any]
    device: int


class TensorRTEngine:
    """A TensorRT plan on the GPU.

    Buffers and execution context serve one call at a time, so calls from several threads wait for each other. The GPU
    is the bottleneck: a context for each thread would need memory and gain little.
    """

    def __init__(self, path: Path, contract: InputContract, threads: int = 1, lungs: LungGrid | None = None) -> None:
        here, sidecar = this_target(), Sidecar.read(path)
        if differences := sidecar.differences(here, Bundle.open(path.parent).manifest):
            raise EngineError(f"{path}: {'; '.join(differences)}; {_rebuild(path, sidecar.options)}")
        from cuda.bindings import runtime as cudart

        self.backend = f"CUDA, {here.gpu}"
        self._one_at_a_time = Lock()
        # Frees resources if the rest of this constructor fails, and before the interpreter shuts CUDA down.
        self._resources = ExitStack()
        weakref.finalize(self, self._resources.close)
        self._engine = _load(path, sidecar)
        self._input, self._given, self._max_batch = self._check(path, contract, lungs)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{path}: not enough memory on the GPU to run this plan; end other programs that use it")
        self._stream = _cuda(cudart.cudaStreamCreate())
        self._resources.callback(cudart.cudaStreamDestroy, self._stream)
        self._set_batch(self._max_batch)
        self._buffers = {name: self._allocate(name) for name in (self._input, *self._given)}

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`. Batches are as large as the plan allows."""
        starts = range(0, len(images), self._max_batch)
        with self._one_at_a_time:
            batches = [self._run_batch(images[start : start + self._max_batch]) for start in starts]
        joined = [np.concatenate(rows).astype(np.float32, copy=False) for rows in zip(*batches, strict=True)]
        return Outputs(**dict(zip(self._given, joined, strict=True)))

    def _check(self, path: Path, contract: InputContract, lungs: LungGrid | None) -> tuple[str, tuple[str, ...], int]:
        """Compare the plan with the manifest; return the name of its input, its outputs and the maximum batch size."""
        import tensorrt as trt

        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shape = tuple(engine.get_tensor_shape(inputs[0]))
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(inputs[0]))).name
        outputs = {name: tuple(engine.get_tensor_shape(name)) for name in names if name not in inputs}
        check_signature(path, contract, inputs[0], dtype, shape, outputs, lungs)
        *_, largest = engine.get_tensor_profile_shape(inputs[0], 0)
        return inputs[0], given_outputs(names, lungs), int(largest[0])

    def _set_batch(self, count: int) -> None:
        """Set the batch size of the context, which determines all output shapes."""
        shape = (count, *tuple(self._engine.get_tensor_shape(self._input))[1:])
        if not self._context.set_input_shape(self._input, shape):
            raise EngineError(f"TensorRT refuses the input shape {shape}; rebuild the plan")

    def _allocate(self, name: str) -> _Buffer:
        """Allocate host and device memory for a tensor of the largest batch, and give its address to the context."""
        import tensorrt as trt
        from cuda.bindings import runtime as cudart

        shape = tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        pinned = _cuda(cudart.cudaMallocHost(size))
        self._resources.callback(cudart.cudaFreeHost, pinned)
        device = _cuda(cudart.cudaMalloc(size))
        self._resources.callback(cudart.cudaFree, device)
        if not self._context.set_tensor_address(name, int(device)):
            raise EngineError(f"TensorRT refuses the address of {name!r}; rebuild the plan")
        memory = (ctypes.c_byte * size).from_address(int(pinned))
        return _Buffer(np.frombuffer(memory, dtype).reshape(shape), int(device))

    def _run_batch(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """Run at most `max_batch` images; return copies of the outputs in the types of the plan."""
        from cuda.bindings import runtime as cudart

        to_device, to_host = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        count, stream, feed = len(images), self._stream, self._buffers[self._input]
        feed.host[:count] = images
        self._set_batch(count)
        _cuda(cudart.cudaMemcpyAsync(feed.device, feed.host.ctypes.data, feed.host[:count].nbytes, to_device, stream))
        if not self._context.execute_async_v3(int(stream)):
            raise EngineError("TensorRT could not run the plan; rebuild it")
        # The batch is the first axis of row-major buffers, so `count` images are their first bytes.
        buffers = [self._buffers[name] for name in self._given]
        for buffer in buffers:
            host = buffer.host[:count]
            _cuda(cudart.cudaMemcpyAsync(host.ctypes.data, buffer.device, host.nbytes, to_host, stream))
        _cuda(cudart.cudaStreamSynchronize(stream))
        return [buffer.host[:count].copy() for buffer in buffers]


def _load(path: Path, sidecar: Sidecar) -> trt.ICudaEngine:
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    # Such a plan contains its own runtime, which is host code. The sidecar was checked, so it may run.
    runtime.engine_host_code_allowed = sidecar.options.version_compatible
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(f"{path}: TensorRT cannot load this plan; {_rebuild(path, sidecar.options)}")
    return engine


def _rebuild(plan: Path, options: PlanOptions | None = None) -> str:
    """The command that rebuilds a plan, with its options."""
    words = [f"rebuild it: cxr-edge export {plan.parent} --format tensorrt"]
    if options and options.max_batch > 1:
        words.append(f"--max-batch {options.max_batch}")
    words += [
        f"--{name.replace('_', '-')}" for name, value in asdict(options or PlanOptions()).items() if value is True
    ]
    return " ".join(words)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _cuda(result: Any) -> Any:
    """Value of a cuda-bindings call, which returns (error, value…); raise EngineError if it failed."""
    error, *values = result
    if int(error) != 0:
        raise EngineError(f"CUDA says {error.name if hasattr(error, 'name') else error}")
    return values[0] if values else None

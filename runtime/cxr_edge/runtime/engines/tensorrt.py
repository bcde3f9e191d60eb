"""TensorRT: plans built on this very device by `cxr-edge export BUNDLE --format tensorrt`.

A plan is executable code for one release of TensorRT and one kind of GPU. Its sidecar says for which, and of what it
was built; nothing is loaded that the sidecar does not vouch for.
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

from cxr_edge.runtime.bundles.bundle import Bundle, InputContract, Manifest, ModelFile
from cxr_edge.runtime.bundles.fields import Document, Rule, read_limited
from cxr_edge.runtime.bundles.manifest import LARGEST_MANIFEST, FileName, Name, Sha256
from cxr_edge.runtime.engines.base import OUTPUTS, Outputs, check_signature
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError

if TYPE_CHECKING:
    import tensorrt as trt

#: First major compute capability (Ampere) of GPUs that run hardware-compatible plans.
AMPERE = 8
Release = Annotated[
    str,
    Rule('a version such as "10.3.0.26"', lambda version: bool(re.fullmatch(r"[0-9]+(\.[0-9A-Za-z+-]+)*", version))),
]


@dataclass(frozen=True)
class Target:
    """What a plan is built for: the release of TensorRT, the GPU, and the operating system and processor."""

    tensorrt: Release
    gpu: Name
    compute_capability: Name
    platform: Name


@dataclass(frozen=True)
class PlanOptions:
    """What a plan can do beyond running one image on the machine that built it.

    Attributes
    ----------
    max_batch
        Most images that it runs at once, ≥ 1.
    version_compatible
        Later releases of the same major version run it too.
    hardware_compatible
        Every GPU from Ampere on (compute capability 8.0) runs it too.
    """

    max_batch: Annotated[int, Rule("a whole number ≥ 1", lambda count: count >= 1)] = 1
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class Sidecar:
    """What lies beside a plan: the plan's hash, what it was built for, of which ONNX file, and how."""

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
            If it is missing, or not what this release of cxr-edge writes.
        """
        document = Document(str(sidecar_path(plan)), _rebuild(plan))
        data = document.parse(read_limited(sidecar_path(plan), LARGEST_MANIFEST, document.remedy))
        return document.build(cls, data)

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def differences(self, here: Target, manifest: Manifest) -> list[str]:
        """What forbids running the plan on `here`, in the bundle of `manifest`; empty if nothing does."""
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
        """TensorRT promises version-compatible plans to later releases of the same major version."""
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
        If there is no GPU that CUDA can use. Without this, TensorRT hands out objects that crash when they are used.
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
    """Where a plan's sidecar lies."""
    return plan.with_name(plan.name + ".json")


@dataclass(frozen=True)
class _Buffer:
    """A tensor's memory, as large as the largest batch: a page-locked host array, and the address on the device."""

    host: npt.NDArray[Any]
    device: int


class TensorRTEngine:
    """A TensorRT plan on the GPU.

    Its buffers and its execution context serve one call at a time: calls of several threads wait for each other. The
    GPU is the bottleneck, so a context for each thread would take memory and gain little.
    """

    def __init__(self, path: Path, contract: InputContract, threads: int = 1) -> None:
        here, sidecar = this_target(), Sidecar.read(path)
        if differences := sidecar.differences(here, Bundle.open(path.parent).manifest):
            raise EngineError(f"{path}: {'; '.join(differences)}; {_rebuild(path, sidecar.options)}")
        from cuda.bindings import runtime as cudart

        self.backend = f"CUDA, {here.gpu}"
        self._one_at_a_time = Lock()
        # Also frees what there is if the rest of this constructor fails, and before the interpreter takes CUDA down.
        self._resources = ExitStack()
        weakref.finalize(self, self._resources.close)
        self._engine = _load(path, sidecar)
        self._input, self._max_batch = self._check(path, contract)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{path}: no memory on the GPU to run this plan; end what else uses it")
        self._stream = _cuda(cudart.cudaStreamCreate())
        self._resources.callback(cudart.cudaStreamDestroy, self._stream)
        self._set_batch(self._max_batch)
        self._buffers = {name: self._allocate(name) for name in (self._input, *OUTPUTS)}

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`; as many images at a time as the plan takes."""
        starts = range(0, len(images), self._max_batch)
        with self._one_at_a_time:
            batches = [self._run_batch(images[start : start + self._max_batch]) for start in starts]
        return Outputs(*(np.concatenate(rows).astype(np.float32, copy=False) for rows in zip(*batches, strict=True)))

    def _check(self, path: Path, contract: InputContract) -> tuple[str, int]:
        """Hold the plan's input and outputs to the contract; -> the input's name, and the most images at once."""
        import tensorrt as trt

        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shape = tuple(engine.get_tensor_shape(inputs[0]))
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(inputs[0]))).name
        check_signature(path, contract, inputs[0], dtype, shape, set(names) - set(inputs))
        *_, largest = engine.get_tensor_profile_shape(inputs[0], 0)
        return inputs[0], int(largest[0])

    def _set_batch(self, count: int) -> None:
        """Tell the context how many images come; every output's shape follows."""
        shape = (count, *tuple(self._engine.get_tensor_shape(self._input))[1:])
        if not self._context.set_input_shape(self._input, shape):
            raise EngineError(f"TensorRT refuses the input shape {shape}; build the plan anew")

    def _allocate(self, name: str) -> _Buffer:
        """Memory for a tensor of the largest batch, on both sides, and its address for the context."""
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
            raise EngineError(f"TensorRT refuses the address of {name!r}; build the plan anew")
        memory = (ctypes.c_byte * size).from_address(int(pinned))
        return _Buffer(np.frombuffer(memory, dtype).reshape(shape), int(device))

    def _run_batch(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """Outputs of at most `max_batch` images, as the plan types them, in memory of their own."""
        from cuda.bindings import runtime as cudart

        to_device, to_host = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        count, stream, feed = len(images), self._stream, self._buffers[self._input]
        feed.host[:count] = images
        self._set_batch(count)
        _cuda(cudart.cudaMemcpyAsync(feed.device, feed.host.ctypes.data, feed.host[:count].nbytes, to_device, stream))
        if not self._context.execute_async_v3(int(stream)):
            raise EngineError("TensorRT could not run the plan; build it anew")
        # Row-major with the batch first: `count` images are the buffers' first bytes.
        buffers = [self._buffers[name] for name in OUTPUTS]
        for buffer in buffers:
            host = buffer.host[:count]
            _cuda(cudart.cudaMemcpyAsync(host.ctypes.data, buffer.device, host.nbytes, to_host, stream))
        _cuda(cudart.cudaStreamSynchronize(stream))
        return [buffer.host[:count].copy() for buffer in buffers]


def _load(path: Path, sidecar: Sidecar) -> trt.ICudaEngine:
    import tensorrt as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    # Such a plan carries its own runtime, which is host code: run it only because the sidecar vouches for it.
    runtime.engine_host_code_allowed = sidecar.options.version_compatible
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(f"{path}: TensorRT cannot load this plan; {_rebuild(path, sidecar.options)}")
    return engine


def _rebuild(plan: Path, options: PlanOptions | None = None) -> str:
    """The command that builds a plan anew, with its options."""
    words = [f"build it anew: cxr-edge export {plan.parent} --format tensorrt"]
    if options and options.max_batch > 1:
        words.append(f"--max-batch {options.max_batch}")
    words += [
        f"--{name.replace('_', '-')}" for name, value in asdict(options or PlanOptions()).items() if value is True
    ]
    return " ".join(words)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _cuda(result: Any) -> Any:
    """Value of a cuda-bindings call, which returns (error, value…); EngineError if it failed."""
    error, *values = result
    if int(error) != 0:
        raise EngineError(f"CUDA says {error.name if hasattr(error, 'name') else error}")
    return values[0] if values else None

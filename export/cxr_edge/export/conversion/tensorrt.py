"""ONNX -> TensorRT FP16 plan, built on the device that runs it; needs TensorRT and a GPU but no training framework."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.bundles.bundle import Bundle, InputContract, ModelFile, sha256
from cxr_edge.runtime.engines.tensorrt import PlanOptions, Sidecar, Target, sidecar_path, this_target
from cxr_edge.runtime.errors import EngineError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    import tensorrt as trt
    from rich.progress import Progress

PLAN = "model.fp16.engine"
#: Since this release, precision follows the types of the network. Earlier releases have a builder flag.
STRONGLY_TYPED_SINCE = (10, 12)
WORKSPACE_MIB = 1024
DEFAULT = PlanOptions()


def is_strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT builds from the fp16-typed ONNX file (10.12 and later) or from fp32 with a flag (10.3)."""
    release = tuple(int(part) for part in trt.__version__.split(".")[:2])
    return release >= STRONGLY_TYPED_SINCE or not hasattr(trt.BuilderFlag, "FP16")


def source_onnx(bundle: Bundle, typed: bool) -> ModelFile:
    """The bundle's ONNX file to build from.

    Raises
    ------
    EngineError
        If the bundle has no such file.
    """
    precision = "fp16" if typed else "fp32"
    if source := bundle.find("onnx", precision):
        return source
    raise EngineError(
        f"{bundle.folder}: found no {precision} ONNX file to build from; export the bundle with --format onnx"
    )


def build_plan(bundle: Bundle, options: PlanOptions = DEFAULT, say: Callable[[str], None] = lambda line: None) -> Path:
    """Build the FP16 plan of a bundle for this machine, and write it and its sidecar into the bundle.

    Parameters
    ----------
    bundle, options
        What to build, and with which options.
    say
        Called with the equivalent `trtexec` command.

    Raises
    ------
    MissingExtraError, EngineError
        If TensorRT is not installed, there is no GPU, or the build fails.
    IntegrityError
        If the ONNX file differs from the manifest.
    """
    here = this_target()
    import tensorrt as trt

    typed = is_strongly_typed(trt)
    source = source_onnx(bundle, typed)
    onnx, path, cache = bundle.check(source), bundle.folder / PLAN, timing_cache(here)
    say(shlex.join(trtexec(onnx, path, cache, bundle.manifest.input, options, typed)))
    write_atomically(path, _build(onnx, bundle.manifest.input, options, typed, cache))
    entry = ModelFile(path.name, "tensorrt", "fp16", sha256(path), path.stat().st_size)
    sidecar = Sidecar(entry, here, options, source.path, source.sha256, typed)
    write_atomically(sidecar_path(path), sidecar.to_json())
    return path


def timing_cache(here: Target) -> Path:
    """Path of the builder's timing cache, in the user's cache folder: one for each TensorRT release and GPU."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr-edge"
    gpu = re.sub(r"\W+", "-", f"{here.gpu} {here.compute_capability}").lower()
    return folder / f"tensorrt-{here.tensorrt}-{gpu}.timing"


def trtexec(
    onnx: Path, plan: Path, cache: Path, feed: InputContract, options: PlanOptions, typed: bool
) -> tuple[str, ...]:
    """The command of NVIDIA's `trtexec` that builds the same plan."""
    shapes = _profile(feed, options.max_batch)
    sizes = [f"{feed.name}:{'x'.join(map(str, shape))}" for shape in shapes]
    return (
        "trtexec",
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        "--stronglyTyped" if typed else "--fp16",
        *(f"--{name}Shapes={size}" for name, size in zip(("min", "opt", "max"), sizes, strict=True)),
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={cache}",
        *(["--versionCompatible"] if options.version_compatible else []),
        *(["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []),
    )


def _profile(feed: InputContract, max_batch: int) -> list[tuple[int, int, int, int]]:
    """Smallest, typical and largest input shape."""
    return [(count, feed.height, feed.width, feed.channels) for count in (1, max_batch, max_batch)]


def _build(onnx: Path, feed: InputContract, options: PlanOptions, typed: bool, cache_path: Path) -> bytes:
    """Run the builder, show its progress on standard error, and save its timing cache."""
    import tensorrt as trt
    from rich.console import Console
    from rich.progress import Progress

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        raise EngineError(
            f"{onnx}: TensorRT cannot parse it ({parser.get_error(0)}); export the bundle again, or upgrade TensorRT"
        )
    config = _config(builder, feed, options, typed)
    cache = _use_timing_cache(config, cache_path)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        # The builder borrows monitor and cache: both must outlive it.
        config.progress_monitor = monitor = _monitor(bars)
        serialized: Any = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        raise EngineError(f"{onnx}: TensorRT could not build a plan; see its log above")
    measured: Any = cache.serialize()
    write_atomically(cache_path, bytes(measured))
    return bytes(serialized)


def _network_flags(typed: bool) -> int:
    """STRONGLY_TYPED where the release has this flag; without it, networks are always strongly typed."""
    import tensorrt as trt

    flag = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 1 << int(flag) if typed and flag is not None else 0


def _config(builder: trt.Builder, feed: InputContract, options: PlanOptions, typed: bool) -> trt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
    if not typed:
        config.set_flag(trt.BuilderFlag.__members__["FP16"])  # by name, because TensorRT 11 has no such flag
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    profile = builder.create_optimization_profile()
    profile.set_shape(feed.name, *(trt.Dims(list(shape)) for shape in _profile(feed, options.max_batch)))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT does not accept a batch size of {options.max_batch}; see its log above, or lower --max-batch"
        )
    return config


def _use_timing_cache(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """Attach the timing cache of earlier builds; an empty one if there is none or it does not match."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _monitor(bars: Progress) -> Any:
    """A progress monitor that shows a bar for each phase of the build and ends the build on Ctrl-C."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # the bindings require this call, not super()
            self.interrupted = False
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tasks[phase_name] = bars.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                bars.update(self._tasks[phase_name], completed=step + 1)
            except KeyboardInterrupt:  # TensorRT would swallow it; False ends the build
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            bars.remove_task(self._tasks.pop(phase_name))

    return Monitor()

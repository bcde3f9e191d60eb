"""ONNX -> TensorRT FP16 plan, built on the device that will run it. Needs TensorRT and a GPU, no training framework."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cxr_edge.runtime.bundle import Bundle, ModelFile, sha256
from cxr_edge.runtime.engines.tensorrt import sidecar_path, this_target
from cxr_edge.runtime.errors import EngineError
from cxr_edge.runtime.files import write_atomically

PLAN = "model.fp16.engine"
#: From this release on, precision comes from the types of the network; before, from a builder flag.
STRONGLY_TYPED_SINCE = (10, 12)
WORKSPACE_BYTES = 1 << 30


def is_strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT takes the fp16-typed ONNX (10.12 and on, 11) or the fp32 one with a flag (10.3)."""
    release = tuple(int(part) for part in trt.__version__.split(".")[:2])
    return release >= STRONGLY_TYPED_SINCE or not hasattr(trt.BuilderFlag, "FP16")


def build_plan(bundle: Bundle) -> Path:
    """Build the FP16 plan of a bundle for this machine and write it, with its sidecar, into the bundle.

    Raises
    ------
    MissingExtraError, EngineError
        If TensorRT is not installed, there is no GPU, or the build fails.
    """
    target = this_target()
    import tensorrt as trt

    typed = is_strongly_typed(trt)
    source = bundle.find("onnx", "fp16" if typed else "fp32")
    if source is None:
        raise EngineError(f"{bundle.folder}: has no ONNX file to build from; export with --format onnx")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(bundle.check(source).read_bytes()):
        raise EngineError(f"TensorRT cannot parse {source.path}: {parser.get_error(0)}")
    serialized = builder.build_serialized_network(network, _config(trt, builder, bundle, typed))
    if serialized is None:
        raise EngineError("TensorRT could not build the plan; its log above says why")
    path = bundle.folder / PLAN
    write_atomically(path, bytes(serialized))
    entry = ModelFile(path.name, "tensorrt", "fp16", sha256(path), path.stat().st_size)
    sidecar = {"file": asdict(entry), "target": asdict(target), "onnx_sha256": source.sha256, "strongly_typed": typed}
    write_atomically(sidecar_path(path), json.dumps(sidecar, indent=2) + "\n")
    return path


def _network_flags(trt: Any, typed: bool) -> int:
    """STRONGLY_TYPED where the release has it; networks of releases without the flag are typed anyway."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(flag) if typed and flag is not None else 0


def _config(trt: Any, builder: Any, bundle: Bundle, typed: bool) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if not typed:
        config.set_flag(trt.BuilderFlag.FP16)
    feed = bundle.manifest.input
    profile = builder.create_optimization_profile()
    one = (1, feed.height, feed.width, feed.channels)
    profile.set_shape(feed.name, one, one, one)
    config.add_optimization_profile(profile)
    return config

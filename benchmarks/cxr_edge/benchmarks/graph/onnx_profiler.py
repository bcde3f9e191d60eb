"""ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.sessions import onnx_session
from cxr_edge.runtime.errors import EngineError


def profile_onnx(
    file: Path, image: npt.NDArray[np.uint8], threads: int, runs: int
) -> list[tuple[str, str, list[float]]]:
    """Nodes in the order in which they run: name, type, and milliseconds of each run.

    Parameters
    ----------
    image
        (1, H, W, 1) uint8.

    Raises
    ------
    EngineError
        If the profile has no nodes.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = onnx_session(file, threads, enable_profiling=True, profile_file_prefix=prefix)
        for _ in range(runs + 5):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, tuple[str, list[float]]] = {}
    for event in filter(_is_kernel, events):
        name = event["name"].removesuffix("_kernel_time")
        found.setdefault(name, (event["args"]["op_name"], []))[1].append(event["dur"] / 1e3)
    if not found:
        raise EngineError(f"{file}: the profile of ONNX Runtime has no nodes; install another onnxruntime")
    return [(name, kind, times[-runs:]) for name, (kind, times) in found.items()]


def _is_kernel(event: dict[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith("_kernel_time")

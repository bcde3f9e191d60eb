"""Cost of the in-graph heatmap: each file against a copy without that branch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.latency import WARM_UP
from cxr_edge.benchmarks.sessions import onnx_session
from cxr_edge.benchmarks.statistics import median_ratio
from cxr_edge.runtime.errors import UsageError


def without_heatmap(source: Path, target: Path, left_out: str = "heatmap") -> None:
    """Write a copy of a model file that does not compute the output `left_out`."""
    {".onnx": _prune_onnx, ".tflite": _prune_tflite}[source.suffix](source, target, left_out)


def heatmap_cost(
    file: Path, pruned: Path, images: npt.NDArray[np.uint8], threads: int, samples: int, tick: Callable[[], None]
) -> dict[str, Any]:
    """Run both files in turns on (N, H, W, 1) uint8: ratio of their times, its interval, and the raw samples."""
    run_both = [_runner(path, threads) for path in (file, pruned)]
    times: list[list[float]] = [[], []]
    for round_ in range(-WARM_UP, samples):
        image = images[round_ % len(images)][np.newaxis]
        # The second file finds warm caches, so the order alternates.
        order = (0, 1) if round_ % 2 else (1, 0)
        for which in order:
            start = perf_counter()
            run_both[which](image)
            if round_ >= 0:
                times[which].append(1e3 * (perf_counter() - start))
        tick()
    return median_ratio(*times) | {"with_ms": times[0], "without_ms": times[1]}


def _runner(path: Path, threads: int) -> Callable[[npt.NDArray[np.uint8]], Any]:
    """The bare engine, because the runtime refuses a file without a heatmap."""
    if path.suffix == ".onnx":
        session = onnx_session(path, threads)
        return lambda image: session.run(None, {"image": image})
    from ai_edge_litert.interpreter import Interpreter

    from cxr_edge.runtime.quiet import quiet_native_stderr

    with quiet_native_stderr():
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def run(image: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        interpreter.set_tensor(index, image)
        interpreter.invoke()
        return [interpreter.get_tensor(output) for output in outputs]

    return run


def _prune_onnx(source: Path, target: Path, left_out: str) -> None:
    import onnx

    names = [output.name for output in onnx.load(source).graph.output]
    onnx.utils.extract_model(str(source), str(target), ["image"], _others(source, names, left_out))


def _others(source: Path, names: list[str], left_out: str) -> list[str]:
    if left_out not in names:
        raise UsageError(f"{source}: found the outputs {', '.join(names)}, expected {left_out!r} too; export it again")
    return [name for name in names if name != left_out]


def _prune_tflite(source: Path, target: Path, left_out: str) -> None:
    """Remove the operators that only one output needs, with the object interface of the TFLite schema."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    graph = model.subgraphs[0]
    entries = {entry.name.decode(): entry for entry in model.signatureDefs[0].outputs}
    kept = [entries[name] for name in _others(source, list(entries), left_out)]
    model.signatureDefs[0].outputs = kept
    graph.outputs = [entry.tensorIndex for entry in kept]
    needed, operators = set(graph.outputs), []
    for operator in reversed(graph.operators):  # operators are in execution order
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            operators.append(operator)
    graph.operators = operators[::-1]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))

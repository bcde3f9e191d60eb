"""What the machine can do at best: multiply-accumulates of libraries that are not ours, and bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from cxr_edge.benchmarks.sessions import onnx_session

#: Sides of square matrices, of which the best counts. All operands stay in the caches of small processors.
SIDES = (256, 384, 512)
#: Repeats of each measurement; the quickest counts.
REPEATS = 12


@dataclass(frozen=True)
class Peaks:
    """Measured limits of the machine with so many threads.

    Attributes
    ----------
    fp32, int8
        10⁹ multiply-accumulates per second of the best library (a matrix product).
    fp32_by, int8_by
        The library.
    bandwidth
        10⁹ bytes per second, read and written, when a buffer of `buffer` bytes is copied.
    """

    fp32: float
    fp32_by: str
    int8: float
    int8_by: str
    bandwidth: float
    buffer: int

    def to_dict(self) -> dict[str, Any]:
        """Fields of the JSON output."""
        return asdict(self)


def measure_peaks(threads: int, buffer: int) -> Peaks:
    """Measure; takes about a second."""
    floats = {"ONNX Runtime MatMul": _ort("MatMul", threads), "OpenCV gemm": _opencv(threads)}
    integers = {"ONNX Runtime MatMulInteger": _ort("MatMulInteger", threads)}
    fp32, int8 = (max((_best(run), name) for name, run in by.items()) for by in (floats, integers))
    return Peaks(fp32[0], fp32[1], int8[0], int8[1], _bandwidth(buffer), buffer)


def _best(prepare: Callable[[int], Callable[[], Any]]) -> float:
    """10⁹ multiply-accumulates per second on the best side."""
    return max(side**3 / quickest(prepare(side)) for side in SIDES) / 1e9


def quickest(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the quickest of some calls."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


def _ort(operator: str, threads: int) -> Callable[[int], Callable[[], Any]]:
    """A matrix product in ONNX Runtime, with weights as a constant, so that it may pack them before."""

    def prepare(side: int) -> Callable[[], Any]:
        session = onnx_session(_product(operator, side), threads)
        dtype = np.uint8 if operator == "MatMulInteger" else np.float32
        first = np.random.default_rng(0).integers(0, 100, (side, side)).astype(dtype)
        return lambda: session.run(None, {"a": first})

    return prepare


def _product(operator: str, side: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    integers = operator == "MatMulInteger"
    second = np.random.default_rng(1).integers(-100, 100, (side, side)).astype(np.int8 if integers else np.float32)
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integers else (TensorProto.FLOAT, TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info(name, kind, (side, side)) for name, kind in zip("ac", kinds, strict=True)]
    node = helper.make_node(operator, ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(second, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _opencv(threads: int) -> Callable[[int], Callable[[], Any]]:
    def prepare(side: int) -> Callable[[], Any]:
        import cv2

        first, second = np.random.default_rng(0).random((2, side, side), np.float32)
        before = cv2.getNumThreads()

        def run() -> None:
            cv2.setNumThreads(threads)
            cv2.gemm(first, second, 1.0, None, 0.0)
            cv2.setNumThreads(before)

        return run

    return prepare


def _bandwidth(size: int) -> float:
    source, target = np.ones((2, size), np.uint8)
    return 2 * size / quickest(lambda: np.copyto(target, source), 50) / 1e9

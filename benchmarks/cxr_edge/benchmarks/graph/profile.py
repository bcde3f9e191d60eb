"""`bench --profile`: time by operator, beside the least time that the machine allows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.graph.counts import Work, count_by_name, count_tflite
from cxr_edge.benchmarks.graph.limit import least_seconds
from cxr_edge.benchmarks.graph.litert_profiler import profile_litert
from cxr_edge.benchmarks.graph.onnx_profiler import profile_onnx
from cxr_edge.benchmarks.graph.peaks import Peaks
from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile

#: Runs of the network under its profiler.
RUNS = 50
#: Types of operators that multiply and accumulate begin so, in LiteRT and in ONNX Runtime.
PRODUCTS = (
    "Convolution",
    "Fully Connected",
    "Conv",
    "FusedConv",
    "QLinearConv",
    "Gemm",
    "FusedGemm",
    "QGemm",
    "MatMul",
)
#: But this is a change of the type of the elements.
NO_PRODUCT = "Convert"
#: What ONNX Runtime adds to the names of nodes and tensors.
ADDED = re.compile(r"^InsertedPrecisionFreeCast_|_nchwc$|_token_\d+$|/MatMulAddFusion$")


@dataclass(frozen=True)
class Operator:
    """One operator of a file.

    Attributes
    ----------
    name, kind
        Name of its node or its result in the file, if it is known, and its type in the engine.
    ms
        Median of its time.
    least_ms, macs, intensity
        Its limit, its multiply-accumulates, and these per byte moved; None if its work is not known.
    """

    name: str
    kind: str
    ms: float
    least_ms: float | None = None
    macs: int | None = None
    intensity: float | None = None


def profile(
    bundle: Bundle, file: ModelFile, image: npt.NDArray[np.uint8], threads: int, peaks: Peaks
) -> list[Operator]:
    """Profile a file on (1, H, W, 1) uint8 in its engine; operators in the order of their run.

    Raises
    ------
    EngineError, MissingExtraError
        If the engine has no profiler here.
    """
    path = bundle.folder / file.path
    if file.engine == "onnx":
        rows = profile_onnx(path, image, threads, RUNS)
    else:
        rows = [(str(i), kind, times) for i, (kind, times) in enumerate(profile_litert(path, image, threads, RUNS))]
    known = _known(file.engine, path, rows)
    return [
        _operator(name, kind, times, known.get(i), file.precision, peaks) for i, (name, kind, times) in enumerate(rows)
    ]


def by_kind(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Sums over the operators of one type, the longest first."""
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(operator.kind, []).append(operator)
    total = sum(operator.ms for operator in operators)
    rows = [
        {
            "kind": kind,
            "count": len(group),
            "ms": sum(o.ms for o in group),
            "share": sum(o.ms for o in group) / total,
            "least_ms": sum(o.least_ms or 0.0 for o in group),
            "macs": sum(o.macs or 0 for o in group),
        }
        for kind, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -float(row["ms"]))


def causes(operators: Sequence[Operator], count: int = 3) -> list[dict[str, Any]]:
    """The types of operators that are farthest from their limit, in milliseconds."""
    rows = [row | {"beyond_ms": row["ms"] - row["least_ms"]} for row in by_kind(operators)]
    return sorted(rows, key=lambda row: -float(row["beyond_ms"]))[:count]


def to_dict(file: str, operators: Sequence[Operator]) -> dict[str, Any]:
    """Fields of the JSON output."""
    rows = [asdict(operator) for operator in operators]
    return {"file": file, "operators": rows, "by_kind": by_kind(operators), "causes": causes(operators)}


def _known(engine: str, path: Path, rows: Sequence[tuple[str, str, list[float]]]) -> Mapping[int, Work]:
    """Work of each row whose operator is known in the file.

    LiteRT keeps the order of the file, so the n-th products of both belong together. ONNX Runtime changes it but keeps
    names.
    """
    products = [
        i for i, (_, kind, _) in enumerate(rows) if kind.startswith(PRODUCTS) and not kind.startswith(NO_PRODUCT)
    ]
    if engine == "onnx":
        by_name = count_by_name(path)
        return {i: by_name[name] for i in products if (name := ADDED.sub("", rows[i][0])) in by_name}
    counted = count_tflite(path)
    return dict(zip(products, counted, strict=True)) if len(products) == len(counted) else {}


def _operator(
    name: str, kind: str, times: Sequence[float], work: Work | None, precision: str, peaks: Peaks
) -> Operator:
    if work is None:
        return Operator(name, kind, median(times))
    size = 1 if precision == "int8" else 4
    least = 1e3 * least_seconds(work, precision, peaks)
    kind = work.operator if kind == "Conv" else kind  # ONNX Runtime does not tell depthwise convolutions apart
    return Operator(work.name, kind, median(times), least, work.macs, work.macs / work.bytes(size))

"""Multiply-accumulates and elements moved of each operator of an ONNX or TFLite file, for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cxr_edge.runtime.errors import BundleError

#: Operators whose data must be moved. An engine can fuse all others into them, so that they need no time of their own.
COUNTED = frozenset({"Conv", "MatMul", "Gemm", "GlobalAveragePool", "ReduceMean"})


@dataclass(frozen=True)
class Work:
    """Work of one operator.

    Attributes
    ----------
    name, operator
        Name of the node, and its type, such as `Conv`; `Conv depthwise` if each channel has its own filter.
    macs
        Multiply-accumulates of convolutions and matrix products; 0 for others.
    weights, moved
        Number of elements of its constants, and of its other inputs and outputs.
    """

    name: str
    operator: str
    macs: int
    weights: int
    moved: int

    def bytes(self, size: int) -> int:
        """Bytes that it must read or write at least, with elements of `size` bytes."""
        return size * (self.weights + self.moved)


def count(path: Path) -> list[Work]:
    """Count the work of each operator of an ONNX file.

    Raises
    ------
    BundleError
        If the file is not an ONNX model, or the shape of a tensor cannot be inferred.
    """
    return _works(path, _read(path))


def count_by_name(path: Path) -> dict[str, Work]:
    """Work of each convolution and matrix product of an ONNX file, by the names that ONNX Runtime may give it.

    An operator that is fused with those after it takes the name of one of them, or of a tensor between them.
    """
    graph = _read(path)
    works = {work.name: work for work in _works(path, graph) if work.macs}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, Work] = {}
    for node in graph.node:
        work = works.get(node.name or node.output[0])
        while work is not None:
            found |= {node.name: work, node.output[0]: work}
            following = readers.get(node.output[0], [])
            if len(following) != 1 or following[0].op_type in COUNTED:
                break
            (node,) = following
    return found


def count_tflite(path: Path) -> list[Work]:
    """Count the work of each convolution and matrix product of a TFLite file, in the order in which they run."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {
        schema.BuiltinOperator.CONV_2D: "Conv",
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: "Conv depthwise",
        schema.BuiltinOperator.FULLY_CONNECTED: "MatMul",
        schema.BuiltinOperator.BATCH_MATMUL: "MatMul",
    }
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph, found = model.subgraphs[0], []
    for operator in graph.operators:
        kind = kinds.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        if kind is None:
            continue
        result = graph.tensors[operator.outputs[0]]
        image, *constants = [graph.tensors[i].shape.tolist() for i in operator.inputs if i >= 0]
        # Filters are (out, height, width, in), depthwise ones (1, height, width, channels), and matrices (out, in).
        per_result = prod(constants[0][1:3] if kind == "Conv depthwise" else constants[0][1:])
        size = prod(result.shape.tolist())
        weights, moved = sum(prod(shape) for shape in constants), prod(image) + size
        found.append(Work(result.name.decode(), kind, size * per_result, weights, moved))
    return found


def _read(path: Path) -> Any:
    """The graph of an ONNX file with all shapes, for one image."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(_for_one_image(onnx.load(path))).graph
    except Exception as error:  # onnx and protobuf have no common base class
        raise BundleError(f"{path}: not a model that onnx can read ({error}); copy the file again") from error


def _works(path: Path, graph: Any) -> list[Work]:
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)} | constants
    return [_work(path, node, shapes, constants.keys()) for node in graph.node if node.op_type in COUNTED]


def _for_one_image(model: Any) -> Any:
    """Set the batch axis of inputs and outputs to 1."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return model


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim)


def _work(path: Path, node: Any, shapes: dict[str, tuple[int, ...]], constants: Any) -> Work:
    if missing := [name for name in (*node.input, *node.output) if name and name not in shapes]:
        raise BundleError(f"{path}: the shape of {missing[0]!r} cannot be inferred; export the model again")
    operands = [name for name in node.input if name]
    weights = sum(prod(shapes[name]) for name in operands if name in constants)
    moved = sum(prod(shapes[name]) for name in (*operands, *node.output) if name not in constants)
    shaped = [shapes[name] for name in operands]
    result = shapes[node.output[0]]
    return Work(
        node.name or node.output[0], _kind(node.op_type, shaped), _macs(node.op_type, shaped, result), weights, moved
    )


def _kind(operator: str, operands: Sequence[tuple[int, ...]]) -> str:
    if operator != "Conv":
        return operator
    if operands[1][1] == 1 and operands[1][0] > 1 and operands[0][1] > 1:
        return "Conv depthwise"
    return "Conv 1×1" if operands[1][2:] == (1, 1) else "Conv"


def _macs(operator: str, operands: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> int:
    if operator == "Conv":  # the filter is (out, in / groups, height, width)
        return prod(result) * prod(operands[1][1:])
    if operator in ("MatMul", "Gemm"):
        return prod(result) * operands[0][-1]
    return 0

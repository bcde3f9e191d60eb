"""A file is called int8 only if it is: its convolutions take integers in, they do not just store their weights so."""

from __future__ import annotations

from pathlib import Path

from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.quiet import quiet_native_stderr

#: Share of the convolutions that must compute on integers: a few sensitive ones may stay in floating point.
LEAST_INTEGER = 0.5


def check_precision(path: Path, file: ModelFile) -> None:
    """Refuse a file labelled int8 that computes in floating point, as a dynamic-range or weight-only file does.

    Raises
    ------
    BundleError
        If less than `LEAST_INTEGER` of its convolutions take integer activations.
    """
    if file.precision != "int8" or file.engine not in ("litert", "onnx"):
        return
    integer = _tflite_convolutions(path) if file.engine == "litert" else _onnx_convolutions(path)
    if sum(integer) < LEAST_INTEGER * len(integer) or not integer:
        raise BundleError(
            f"{path}: called int8, but {len(integer) - sum(integer)} of its {len(integer)} convolutions compute on "
            "floating-point activations: quantised weights alone (dynamic range) are not int8; export it again"
        )


def _tflite_convolutions(path: Path) -> list[bool]:
    """For each convolution whether its input is an integer tensor."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet_native_stderr():
        interpreter = Interpreter(
            str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
    kinds = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    convolutions = [op for op in interpreter._get_ops_details() if op["op_name"].endswith("CONV_2D")]
    return [kinds[op["inputs"][0]].__name__.startswith(("int", "uint")) for op in convolutions]


def _onnx_convolutions(path: Path) -> list[bool]:
    """For each convolution whether it is quantised with fixed ranges: QLinearConv, or Conv of what is dequantised."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in nodes if node.op_type in ("Conv", "QLinearConv", "ConvInteger")]
    return [node.op_type == "QLinearConv" or node.input[0] in dequantised for node in convolutions]

"""Check that a file labelled int8 computes with integers, and does not only store its weights as integers."""

from __future__ import annotations

from pathlib import Path

from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.quiet import quiet_native_stderr

#: Smallest share of convolutions that compute with integers. A few sensitive ones may stay in floating point.
LEAST_INTEGER = 0.5


def check_precision(path: Path, file: ModelFile) -> None:
    """Reject a file labelled int8 that computes in floating point, such as a dynamic-range or weight-only file.

    Raises
    ------
    BundleError
        If fewer than `LEAST_INTEGER` of its convolutions have integer activations.
    """
    if file.precision != "int8" or file.engine not in ("litert", "onnx"):
        return
    integer = _tflite_convolutions(path) if file.engine == "litert" else _onnx_convolutions(path)
    if sum(integer) < LEAST_INTEGER * len(integer) or not integer:
        raise BundleError(
            f"{path}: called int8, but {len(integer) - sum(integer)} of its {len(integer)} convolutions compute on "
            "floating-point activations; quantised weights alone (dynamic range) are not int8; export it again"
        )


def _tflite_convolutions(path: Path) -> list[bool]:
    """For each convolution, whether its input is an integer tensor."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet_native_stderr():
        interpreter = Interpreter(
            str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
    kinds = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    convolutions = [op for op in interpreter._get_ops_details() if op["op_name"].endswith("CONV_2D")]
    return [kinds[op["inputs"][0]].__name__.startswith(("int", "uint")) for op in convolutions]


def _onnx_convolutions(path: Path) -> list[bool]:
    """For each convolution, whether it has fixed ranges: QLinearConv, or Conv of a dequantised tensor."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in nodes if node.op_type in ("Conv", "QLinearConv", "ConvInteger")]
    return [node.op_type == "QLinearConv" or node.input[0] in dequantised for node in convolutions]

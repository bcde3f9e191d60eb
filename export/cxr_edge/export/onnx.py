"""Deployment graph -> ONNX fp32 and strongly typed fp16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.bundle import METADATA_KEY
from cxr_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    import keras
    import onnx

#: tf2onnx writes up to 18; TensorRT 10.3 and ONNX Runtime read 17 everywhere.
OPSET = 17


def onnx_from_keras(model: keras.Model) -> onnx.ModelProto:
    """Convert a deployment graph to fp32 ONNX: batch norms folded, the batch axis named `N`, checked.

    Raises
    ------
    BundleError
        If what came out is no valid ONNX, or has other inputs or outputs than the contract.
    """
    import onnx
    import onnxslim
    import tensorflow as tf
    import tf2onnx

    def graph(image: Any) -> Any:
        return model(image)

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")]
    converted, _ = tf2onnx.convert.from_function(tf.function(graph), input_signature=signature, opset=OPSET)
    slim = onnxslim.slim(converted)  # folds the depthwise batch norms that tf2onnx leaves
    for value in (*slim.graph.input, *slim.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    slim.graph.name = model.name
    onnx.checker.check_model(slim, full_check=True)
    names = {value.name for value in slim.graph.output}
    if names != set(model.output):
        raise BundleError(f"the ONNX file's outputs are {sorted(names)} instead of {sorted(model.output)}")
    return slim


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Type a graph in fp16 throughout, its inputs and outputs left as they are; for every release of TensorRT."""
    import onnx
    from onnxconverter_common import float16

    casts = {node.name for node in model.graph.node if node.op_type == "Cast"}
    half = float16.convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model), min_positive_val=2**-25, max_finite_val=65504, keep_io_types=True
    )
    for node in half.graph.node:  # the converter leaves the casts that it finds, from the pixels to fp32
        if node.name in casts:
            node.attribute[0].i = onnx.TensorProto.FLOAT16
    _keep_constants_after_outputs(half, model)
    del half.graph.value_info[:]
    half = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    onnx.checker.check_model(half, full_check=True)
    return half


def _keep_constants_after_outputs(half: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give the nodes that go on from an output, as the probability does from the logit, their fp32 constants back.

    Outputs stay fp32 and so does what is computed from them, but the converter halves the temperature all the same.
    """
    reached = {value.name for value in model.graph.output}
    constants = set()
    for node in model.graph.node:  # in topological order
        if reached.intersection(node.input):
            reached.update(node.output)
            constants.update(node.input)
    exact = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in constants}
    for tensor in half.graph.initializer:
        if tensor.name in exact:
            tensor.CopyFrom(exact[tensor.name])


def write_onnx(model: onnx.ModelProto, path: Path, facts: str) -> None:
    """Write an ONNX file with the manifest's facts inside."""
    import onnx

    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, facts
    model.producer_name = "cxr-edge"
    onnx.save(model, path)

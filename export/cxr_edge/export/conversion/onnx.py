"""Deployment graph -> ONNX fp32, strongly typed fp16, and int8 (QDQ)."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.facts import METADATA_KEY, seal
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras
    import onnx

#: tf2onnx supports up to 18. Every supported TensorRT and ONNX Runtime reads 17.
OPSET = 17
#: Largest integer weight of int8 files that are not symmetric: the reduced range of ONNX Runtime.
REDUCED = 64


def onnx_from_keras(model: keras.Model) -> onnx.ModelProto:
    """Convert a deployment graph to fp32 ONNX, fold its batch norms, name the batch axis `N`, and check the result.

    Raises
    ------
    BundleError
        If the outputs are not those of the deployment graph.
    """
    import onnx
    import onnxslim
    import tensorflow as tf
    import tf2onnx

    def graph(image: Any) -> Any:
        return model(image)

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")]
    traced = tf.function(graph)
    traced.get_concrete_function(*signature)
    with _early_garbage_collection():
        converted, _ = tf2onnx.convert.from_function(traced, input_signature=signature, opset=OPSET)
    slim = onnxslim.slim(converted)  # folds the depthwise batch norms that tf2onnx leaves
    for value in (*slim.graph.input, *slim.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    slim.graph.name = model.name
    give_scalars_axes(slim)
    onnx.checker.check_model(slim, full_check=True)
    names = {value.name for value in slim.graph.output}
    if names != set(model.output):
        raise BundleError(
            f"ONNX conversion: found the outputs {sorted(names)}, expected {sorted(model.output)}; install "
            "the versions of tf2onnx and onnxslim that constraints.txt names"
        )
    return slim


def give_scalars_axes(model: onnx.ModelProto) -> None:
    """Write scalars that are added to tensors of four axes with four axes of length 1. The outputs keep their bits.

    ONNX Runtime 1.31 takes 0.46 ms to add a scalar without axes to (1, 224, 224, 1), 8 % of the network on an AMD EPYC
    with AVX-512. With axes it takes 0.015 ms (docs/performance.md).
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    scalars = {tensor.name: tensor for tensor in model.graph.initializer if not tensor.dims}
    for name, tensor in scalars.items():
        users = [node for node in model.graph.node if name in node.input]
        beside = [other for node in users for other in node.input if other != name]
        # Beside a tensor with other axes, these would change the shape of the result.
        if beside and all(node.op_type == "Add" for node in users) and all(axes.get(other) == 4 for other in beside):
            tensor.dims.extend([1, 1, 1, 1])


@contextmanager
def _early_garbage_collection() -> Iterator[None]:
    """Collect reference cycles soon after they are dropped.

    tf2onnx copies the graph with its weights for each of its passes. Each copy is a cycle of few, large objects. Python
    counts objects to decide when to search for cycles, and TensorFlow has so many that the copies of a ResNet50 took
    11 GB before the first search.
    """
    thresholds = gc.get_threshold()
    gc.freeze()  # existing objects are neither searched nor counted
    gc.collect()
    gc.set_threshold(thresholds[0], 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a graph to fp16, except its inputs and outputs, in a form that every TensorRT release can build."""
    import onnx
    from onnxconverter_common import float16

    casts = {node.name for node in model.graph.node if node.op_type == "Cast"}
    half = float16.convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model),
        min_positive_val=2**-25,
        max_finite_val=65504,
        keep_io_types=True,
        # ONNX Runtime supports Min in half precision by now.
        op_block_list=[kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind != "Min"],
    )
    for node in half.graph.node:  # the converter does not change existing casts from pixels to fp32
        if node.name in casts:
            node.attribute[0].i = onnx.TensorProto.FLOAT16
    _keep_constants_after_outputs(half, model)
    del half.graph.value_info[:]
    half = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    onnx.checker.check_model(half, full_check=True)
    return half


def _keep_constants_after_outputs(half: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Restore the fp32 constants of nodes that follow an output, such as the temperature between logit and probability.

    Outputs and all that is computed from them stay fp32, but the converter rounds these constants to fp16.
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


def to_int8(
    model: onnx.ModelProto, calibration: npt.NDArray[np.uint8], finest: int, symmetric: bool = False
) -> onnx.ModelProto:
    """Add a Quantize and a Dequantize to every tensor of the backbone; the head stays in floating point.

    Parameters
    ----------
    model
        fp32 graph with weights rounded by `quantize.round_weights`, to `REDUCED` steps, or to `FULL` if `symmetric`.
    calibration
        (N, H, W, 1) uint8: the radiographs whose minima and maxima set the ranges of activations.
    finest
        Height of the finest feature map to quantise (pixels).
    symmetric
        Signed activations with zero point 0 and float biases, as TensorRT requires. Otherwise unsigned activations
        and 7-bit weights: the fastest kernels of ONNX Runtime on x86 add pairs of products in 16 bits, which full 8-bit
        weights overflow.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[npt.NDArray[np.uint8]] = iter(calibration)

        def get_next(self) -> Any:
            image = next(self._images, None)
            return None if image is None else {"image": image[np.newaxis]}

    chosen = _backbone(model, finest)
    # It warns that the model was not preprocessed, but the graph is already simplified and its shapes are known.
    with tempfile.TemporaryDirectory() as folder, quiet_native_stderr():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            path,
            Images(),
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": not symmetric},
        )
        quantised = onnx.load(path)
    del quantised.graph.value_info[:]  # 19 kB of shapes that every reader can infer
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _backbone(model: onnx.ModelProto, finest: int) -> list[str]:
    """Names of the nodes that lead to the last feature map and to the logits of the lungs.

    Nodes whose maps are finer than `finest` pixels are left out.
    """
    import onnx

    maker = {name: node for node in model.graph.node for name in node.output}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    head = next(node for node in model.graph.node if "hidden_per_cell" in node.name)
    waiting, chosen = [head.input[0]], {}
    if "lungs" in maker:
        sigmoid = maker[maker["lungs"].input[0]]
        waiting.append(sigmoid.input[0])
    while waiting:
        node = maker.get(waiting.pop())
        if node is None or node.name in chosen or shapes[node.output[0]][2] > finest:
            continue
        chosen[node.name] = node
        waiting.extend(node.input)
    return list(chosen)


def write_onnx(model: onnx.ModelProto, path: Path, facts: str) -> None:
    """Write an ONNX file that contains the manifest's facts, sealed with a digest of the whole file."""
    import onnx

    del model.metadata_props[:]
    model.producer_name = "cxr-edge"
    content = model.SerializeToString()
    appended = onnx.ModelProto()  # concatenated protobuf messages merge
    entry = appended.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, seal(facts, content)
    path.write_bytes(content + appended.SerializeToString())

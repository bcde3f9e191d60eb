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

#: tf2onnx writes up to 18; TensorRT 10.3 and ONNX Runtime read 17 everywhere.
OPSET = 17
#: Largest weight of int8 files that are not symmetric: ONNX Runtime's reduced range.
REDUCED = 64


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
    traced = tf.function(graph)
    traced.get_concrete_function(*signature)
    with _early_garbage_collection():
        converted, _ = tf2onnx.convert.from_function(traced, input_signature=signature, opset=OPSET)
    slim = onnxslim.slim(converted)  # folds the depthwise batch norms that tf2onnx leaves
    for value in (*slim.graph.input, *slim.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    slim.graph.name = model.name
    onnx.checker.check_model(slim, full_check=True)
    names = {value.name for value in slim.graph.output}
    if names != set(model.output):
        raise BundleError(f"the ONNX file's outputs are {sorted(names)} instead of {sorted(model.output)}")
    return slim


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
    """Type a graph in fp16 throughout, its inputs and outputs left as they are; for every release of TensorRT."""
    import onnx
    from onnxconverter_common import float16

    casts = {node.name for node in model.graph.node if node.op_type == "Cast"}
    half = float16.convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model),
        min_positive_val=2**-25,
        max_finite_val=65504,
        keep_io_types=True,
        # Min was not to be had in half precision once, and is today.
        op_block_list=[kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind != "Min"],
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


def to_int8(
    model: onnx.ModelProto, calibration: npt.NDArray[np.uint8], finest: int, symmetric: bool = False
) -> onnx.ModelProto:
    """Put a Quantize and a Dequantize around every tensor of the backbone; the head stays float.

    Parameters
    ----------
    model
        fp32, its weights rounded by `quantize.round_weights`: to `REDUCED` steps, or 127 if `symmetric`.
    calibration
        (N, H, W, 1) uint8: the radiographs that set the ranges of activations, by their extremes.
    finest
        Height of the finest feature map to quantise (pixels).
    symmetric
        Signed activations of zero point 0 and float biases, as TensorRT wants them. Otherwise unsigned activations
        and weights of 7 bits: ONNX Runtime's quickest kernels on x86 add pairs of products in 16 bits, which whole
        8-bit weights overflow.
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
    # It asks for a preparation that is done already: the graph is slim, its shapes are known.
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
    del quantised.graph.value_info[:]  # shapes that every reader infers by itself; 19 kB
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _backbone(model: onnx.ModelProto, finest: int) -> list[str]:
    """Names of the nodes that lead to the last feature map, those of maps finer than `finest` pixels left out."""
    import onnx

    maker = {name: node for node in model.graph.node for name in node.output}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    head = next(node for node in model.graph.node if "hidden_per_cell" in node.name)
    waiting, chosen = [head.input[0]], {}
    while waiting:
        node = maker.get(waiting.pop())
        if node is None or node.name in chosen or shapes[node.output[0]][2] > finest:
            continue
        chosen[node.name] = node
        waiting.extend(node.input)
    return list(chosen)


def write_onnx(model: onnx.ModelProto, path: Path, facts: str) -> None:
    """Write an ONNX file with the manifest's facts inside, sealed over the whole file."""
    import onnx

    del model.metadata_props[:]
    model.producer_name = "cxr-edge"
    content = model.SerializeToString()
    appended = onnx.ModelProto()  # messages of protobuf merge where their bytes are put one after another
    entry = appended.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, seal(facts, content)
    path.write_bytes(content + appended.SerializeToString())

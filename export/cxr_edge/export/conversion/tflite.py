"""Deployment graph -> TFLite fp32, fp16 and int8, of built-in operators that the XNNPACK delegate takes to the last."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.export.conversion.metadata import LABELS, add_metadata
from cxr_edge.runtime.bundles.bundle import MANIFEST
from cxr_edge.runtime.bundles.facts import seal
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras


def tflite_from_keras(model: keras.Model, precision: str = "fp32") -> bytes:
    """Convert a deployment graph to a TFLite flatbuffer, of batch 1.

    Parameters
    ----------
    precision
        `fp32`, or `fp16`: weights in half precision.
    """
    import keras
    import tensorflow as tf

    signature = [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="uint8", name="image")]
    with tempfile.TemporaryDirectory() as folder:
        # `from_keras_model` would print every captured tensor.
        model.export(folder, verbose=False, input_signature=signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision == "fp16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        with quiet_native_stderr():
            return _dequantise_the_image(bytes(converter.convert()))


def _dequantise_the_image(flatbuffer: bytes) -> bytes:
    """Declare the image a quantised tensor of scale 1 and zero point 0, and make its Cast to float a Dequantize.

    The same for who feeds it and the same numbers, but XNNPACK takes no Cast.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flatbuffer)
    graph = model.subgraphs[0]
    cast = next(op for op in graph.operators if graph.inputs[0] in op.inputs)
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = dequantize.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(dequantize)
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.builtinOptions, cast.builtinOptionsType = None, schema.BuiltinOptions.NONE
    image = graph.tensors[graph.inputs[0]]
    image.quantization = schema.QuantizationParametersT()
    image.quantization.scale, image.quantization.zeroPoint = [1.0], [0]
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def to_int8(flatbuffer: bytes, calibration: npt.NDArray[np.uint8], float_layers: Collection[str]) -> bytes:
    """Quantise the backbone of an fp32 flatbuffer: int8 weights for each channel, int8 activations for each tensor.

    The head stays float, its one large matrix in half precision, which holds its values exactly.

    Parameters
    ----------
    calibration
        (N, H, W, 1) uint8: the radiographs that set the ranges of activations, by their extremes.
    float_layers
        Names of layers of the backbone to leave in float.
    """
    from ai_edge_quantizer import qtyping, quantizer

    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    left = "|".join(("normalise", *sorted(float_layers)))
    quantiser = quantizer.Quantizer(bytearray(flatbuffer))
    quantiser.add_static_config("/backbone", every, activation_num_bits=8, weight_num_bits=8)
    quantiser.update_quantization_recipe(f"/backbone[^;]*/({left})(_\\d+)?/", every, algorithm_key="no_quantize")
    quantiser.update_quantization_recipe(
        "hidden_per_cell", qtyping.TFLOperationName.CONV_2D, half, algorithm_key="float_casting"
    )
    samples = {"serving_default": [{"image": image[np.newaxis]} for image in calibration]}
    with quiet_native_stderr(), redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it reports at length
        warnings.simplefilter("ignore")
        return _gather(bytes(quantiser.quantize(quantiser.calibrate(samples)).quantized_model))


def _gather(flatbuffer: bytes) -> bytes:
    """Bring the constants that the quantiser puts behind the flatbuffer, as models over 2 GB need it, back into it."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flatbuffer)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1: none
            buffer.data = np.frombuffer(flatbuffer, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def write_tflite(flatbuffer: bytes, path: Path, facts: str, labels: tuple[str, ...]) -> None:
    """Write a TFLite file with its metadata, the manifest's facts, sealed over it, and the labels inside.

    Metadata is a table in the flatbuffer; the files that it names are a zip appended to it, which interpreters do not
    look at.
    """
    content = add_metadata(flatbuffer, MANIFEST)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in ((MANIFEST, seal(facts, content)), (LABELS, "\n".join(labels) + "\n")):
            # A fixed date, so that the same model gives the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)

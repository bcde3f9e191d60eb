"""Deployment graph -> TFLite fp32, fp16 and int8, of built-in operators that the XNNPACK delegate can all run."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.export.conversion.metadata import LABELS, add_metadata
from cxr_edge.runtime.bundles.bundle import MANIFEST
from cxr_edge.runtime.bundles.facts import seal
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras


def tflite_from_keras(model: keras.Model, precision: str = "fp32") -> bytes:
    """Convert a deployment graph to a TFLite flatbuffer of batch size 1.

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
            return bytes(converter.convert())


def to_int8(flatbuffer: bytes, calibration: npt.NDArray[np.uint8], float_layers: Collection[str]) -> bytes:
    """Quantise the backbone of an fp32 flatbuffer: int8 weights per channel, int8 activations per tensor.

    The head stays in floating point. Its one large matrix is stored in half precision, which is exact for its values.

    Parameters
    ----------
    calibration
        (N, H, W, 1) uint8: the radiographs whose minima and maxima set the ranges of activations.
    float_layers
        Names of layers of the backbone that stay in floating point.
    """
    from ai_edge_quantizer import qtyping, quantizer

    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    kept = "|".join(("normalise", *sorted(float_layers)))
    quantiser = quantizer.Quantizer(bytearray(flatbuffer))
    quantiser.add_static_config("/backbone", every, activation_num_bits=8, weight_num_bits=8)
    quantiser.update_quantization_recipe(f"/backbone[^;]*/({kept})(_\\d+)?/", every, algorithm_key="no_quantize")
    quantiser.update_quantization_recipe(
        "hidden_per_cell", qtyping.TFLOperationName.CONV_2D, half, algorithm_key="float_casting"
    )
    samples = {"serving_default": [{"image": image[np.newaxis]} for image in calibration]}
    with quiet_native_stderr(), redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints a long report
        warnings.simplefilter("ignore")
        return bytes(quantiser.quantize(quantiser.calibrate(samples)).quantized_model)


def write_tflite(flatbuffer: bytes, path: Path, facts: str, labels: tuple[str, ...]) -> None:
    """Write a TFLite file with its metadata, the sealed facts of the manifest, and the labels inside.

    The metadata is a table in the flatbuffer. The files that it names are in a zip archive after the flatbuffer, which
    interpreters ignore.

    Raises
    ------
    BundleError
        If the graph does not begin with a cast of the image.
    """
    content = _finish(flatbuffer)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in ((MANIFEST, seal(facts, content)), (LABELS, "\n".join(labels) + "\n")):
            # A fixed date, so that the same model gives the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)


def _finish(flatbuffer: bytes) -> bytes:
    """Make all changes to a converted flatbuffer, which is unpacked and packed once."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flatbuffer)
    _gather_buffers(model, flatbuffer)
    _dequantise_the_image(model)
    add_metadata(model, MANIFEST)
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _gather_buffers(model: Any, flatbuffer: bytes) -> None:
    """Move into the flatbuffer the constants that the quantiser stores after it, as models over 2 GB need it."""
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1: none
            buffer.data = np.frombuffer(flatbuffer, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0


def _dequantise_the_image(model: Any) -> None:
    """Declare the image a quantised tensor (scale 1, zero point 0) and replace its Cast to float by a Dequantize.

    The bytes to feed and all results stay the same, but XNNPACK supports no Cast.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    readers = [op for op in graph.operators if graph.inputs[0] in op.inputs]
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in readers]
    if kinds != [schema.BuiltinOperator.CAST]:
        names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
        raise BundleError(
            f"TFLite conversion: found the image read by {[names[kind] for kind in kinds]}, expected one CAST; install "
            "the versions of tensorflow and keras that constraints.txt names"
        )
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = dequantize.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(dequantize)
    (cast,) = readers
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.builtinOptions, cast.builtinOptionsType = None, schema.BuiltinOptions.NONE
    image = graph.tensors[graph.inputs[0]]
    image.quantization = schema.QuantizationParametersT()
    image.quantization.scale, image.quantization.zeroPoint = [1.0], [0]

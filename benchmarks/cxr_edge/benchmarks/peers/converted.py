"""Peers that convert the network with public tools and their defaults, then run it without this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.sessions import onnx_session
from cxr_edge.common.dataset import evenly

#: Image file -> logit.
Decide = Callable[[Path], float]
#: Largest number of images that set the int8 ranges.
CALIBRATION = 100


def onnx_runtime(network: Any, folder: Path, threads: int) -> Decide:
    """Pillow with its default resizing, tf2onnx with its defaults, ONNX Runtime."""
    session = onnx_session(_onnx(network, folder), threads)
    name, size = session.get_inputs()[0].name, _size(network)
    return lambda path: float(session.run(None, {name: _pillow(path, size)})[0].ravel()[0])


def openvino(network: Any, folder: Path, threads: int) -> Decide:
    """OpenCV with its default resizing, tf2onnx, OpenVINO with its latency hint; ImportError without OpenVINO."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model, size = openvino.Core().compile_model(str(_onnx(network, folder)), "CPU", settings), _size(network)
    return lambda path: float(model(_opencv(path, size))[0].ravel()[0])


def plain_int8(network: Any, images: list[Path], threads: int) -> Decide:
    """OpenCV with its default resizing, the TFLite converter's full int8 quantisation, LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    size = _size(network)
    content = _int8(network, evenly(images, CALIBRATION), size)
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = entry["quantization"]
    steps, offset = result["quantization"]

    def decide(path: Path) -> float:
        quantised = np.clip(np.rint(_opencv(path, size) / scale + zero), -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], quantised)
        interpreter.invoke()
        return float(steps * (int(interpreter.get_tensor(result["index"]).ravel()[0]) - offset))

    return decide


def _onnx(network: Any, folder: Path) -> Path:
    """The network as tf2onnx writes it."""
    import tensorflow as tf
    import tf2onnx

    target = folder / "tf2onnx.onnx"
    if not target.exists():
        signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.float32, name="image")]
        run = tf.function(lambda image: tf.reshape(network(image, training=False), [-1]))
        tf2onnx.convert.from_function(run, input_signature=signature, opset=17, output_path=str(target))
    return target


def _int8(network: Any, images: list[Path], size: tuple[int, int]) -> bytes:
    """The network as the TFLite converter quantises it."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([_opencv(path, size)] for path in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def _size(network: Any) -> tuple[int, int]:
    """Width and height."""
    _, height, width, _ = network.input_shape
    return width, height


def _pillow(path: Path, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize(size), np.float32)[np.newaxis, :, :, np.newaxis]


def _opencv(path: Path, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return np.asarray(cv2.resize(image, size), np.float32)[np.newaxis, :, :, np.newaxis]

"""The deployment graph, in every exact format, against the trained network and its GradientTape Grad-CAM."""

import numpy as np
import onnxruntime
import pytest
from support import SHARED, Lazy, needs_shared

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Novelty
from cxr_edge.export.conversion import onnx, tflite
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.verification.reference import Reference
from cxr_edge.runtime import BundleError
from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.engines.litert import LiteRTEngine
from cxr_edge.runtime.engines.onnx import OnnxEngine
from cxr_edge.train.fit.models import build

fold = Lazy("cxr_edge.train.fit.fold")

pytestmark = pytest.mark.slow

TEMPERATURE = 1.7


def novelty(channels):
    """Directions at random."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(channels, min(channels, 16))))[0]
    kinds = random.normal(0, 0.1, (channels, 3)).astype(np.float32)
    mean = random.uniform(0, 1, channels).astype(np.float32)
    return Novelty(mean, basis.astype(np.float32), kinds, np.full(3, 0.05, np.float32), 1.0)


def novelty_of_layers(network, layers):
    """Random statistics of some layers of a network, with three named kinds that all images reach."""
    random = np.random.default_rng(0)
    widths = [network.get_layer(name).output.shape[-1] for name in layers]
    last = network.get_layer("pool").output.shape[-1]
    basis = np.linalg.qr(random.normal(size=(last, 16)))[0].astype(np.float32)
    kinds = random.normal(0, 0.1, (sum(widths), 3)).astype(np.float32)
    mean = random.uniform(0, 0.1, sum(widths) + last).astype(np.float32)
    return Novelty(mean, basis, kinds, np.full(3, -1, np.float32), 1.0, layers, ("adult", "turned", "CT slice"))


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("layers", [("pool4",), ("pool3", "pool4")])
def test_kinds_of_outliers_are_read_from_earlier_layers_in_the_same_pass(tmp_path, format, layers):
    network = fold.deployable(build("cnn", "none"))
    statistics = novelty_of_layers(network, layers)
    model = deployment_model(network, TEMPERATURE, statistics)
    path = tmp_path / f"model.{format}"
    if format == "onnx":
        onnx.write_onnx(onnx.onnx_from_keras(model), path, "{}")
        engine = OnnxEngine(path, InputContract())
    else:
        tflite.write_tflite(tflite.tflite_from_keras(model, "fp32"), path, "{}", ("NORMAL", "PNEUMONIA"))
        engine = LiteRTEngine(path, InputContract())
    images = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 1), dtype=np.uint8)
    outputs, reference = engine.run(images), Reference(network, TEMPERATURE, statistics).run(images)
    assert outputs.unlike.shape == (4, 3) and reference.unlike.max() > 0
    np.testing.assert_allclose(outputs.unlike, reference.unlike, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.novelty, reference.novelty, rtol=1e-4)


def test_named_kinds_survive_half_precision():
    network = fold.deployable(build("cnn", "none"))
    statistics = novelty_of_layers(network, ("pool3", "pool4"))
    half = onnx.to_fp16(onnx.onnx_from_keras(deployment_model(network, TEMPERATURE, statistics)))
    images = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 1), dtype=np.uint8)
    session = onnxruntime.InferenceSession(half.SerializeToString())
    (unlike,) = session.run(["unlike"], {"image": images})
    reference = Reference(network, TEMPERATURE, statistics).run(images)
    np.testing.assert_allclose(unlike, reference.unlike, atol=0.02 * reference.unlike.max())


def test_a_run_without_named_kinds_gives_files_without_them():
    assert "unlike" not in deployment_model(build("cnn", "none"), TEMPERATURE, novelty(128)).output


@pytest.fixture(scope="module")
def mobilenet():
    """MobileNetV2 with ImageNet features and a random head, as deployed."""
    import keras

    keras.utils.set_random_seed(0)
    return fold.deployable(build("mobilenetv2", str(SHARED / "weights" / "mobilenet_v2_imagenet_notop.weights.h5")))


@pytest.fixture(scope="module")
def radiographs():
    return read_pixels(read_dataset(SHARED / "data" / "chest_xray", ("val",)))


@pytest.fixture(scope="module")
def reference(mobilenet, radiographs):
    return Reference(mobilenet, TEMPERATURE, novelty(1280)).run(radiographs)


def assert_same(outputs, reference):
    np.testing.assert_allclose(outputs.logit, reference.logit, atol=1e-4)
    np.testing.assert_allclose(outputs.probability, reference.probability, atol=1e-5)
    np.testing.assert_allclose(outputs.novelty, reference.novelty, rtol=1e-4)
    peak = reference.heatmap.max()
    assert peak > 0
    assert np.abs(outputs.heatmap - reference.heatmap).max() <= 1e-4 * peak


@needs_shared
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_fp32_files_decide_and_explain_as_keras_with_gradienttape(mobilenet, radiographs, reference, tmp_path, format):
    model = deployment_model(mobilenet, TEMPERATURE, novelty(1280))
    path = tmp_path / f"model.{format}"
    if format == "onnx":
        onnx.write_onnx(onnx.onnx_from_keras(model), path, "{}")
        engine = OnnxEngine(path, InputContract())
    else:
        tflite.write_tflite(tflite.tflite_from_keras(model, "fp32"), path, "{}", ("NORMAL", "PNEUMONIA"))
        engine = LiteRTEngine(path, InputContract())
    assert_same(engine.run(radiographs), reference)


@needs_shared
def test_the_onnx_graph_is_clean(mobilenet):
    exported = onnx.onnx_from_keras(deployment_model(mobilenet, 1.0, novelty(1280)))
    operators = [node.op_type for node in exported.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Transpose") == 1  # of the cells, before the heatmap
    assert exported.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert exported.opset_import[0].version == onnx.OPSET
    # One copy of the hidden layer's weights, 0.65 MB, not two.
    assert exported.ByteSize() < 9.8e6
    half = onnx.to_fp16(exported)
    assert [n.op_type for n in half.graph.node].count("Cast") == 1 + len(half.graph.output)  # the image, the outputs
    floats = [t for t in half.graph.initializer if t.data_type == 1]
    assert not floats, "a strongly typed fp16 graph holds no fp32 constants"


def test_the_tape_reference_is_the_textbook_on_the_whole_network(run):
    """The reference takes the gradient through the head alone; through the whole network it is the same."""
    import keras
    import tensorflow as tf

    network = keras.models.load_model(run / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 1), dtype=np.uint8)
    both = keras.Model(network.inputs[0], [network.get_layer("pool").input, network.outputs[0]])
    with tf.GradientTape() as tape:
        features, logit = both(pixels.astype(np.float32))
    weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
    expected = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()
    np.testing.assert_allclose(
        Reference(network, 1.0, novelty(128)).run(pixels).heatmap, expected, rtol=1e-4, atol=1e-7
    )


def test_a_foreign_network_is_refused():
    import keras

    foreign = keras.Sequential([keras.Input((224, 224, 1)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(BundleError, match="not a network of cxr-edge train"):
        deployment_model(foreign, 1.0, novelty(1))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_temperature_is_in_the_onnx_graph_to_full_precision(precision):
    model = onnx.onnx_from_keras(deployment_model(build("cnn", "none"), TEMPERATURE, novelty(128)))
    model = onnx.to_fp16(model) if precision == "fp16" else model
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 1), np.uint8)
    probability, logit = session.run(["probability", "logit"], {"image": image})
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logit.astype(np.float64) / TEMPERATURE)), atol=1e-6)

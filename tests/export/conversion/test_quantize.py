"""Rounding to int8, and what the int8 files hold."""

import json

import numpy as np
import onnx as onnx_package
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import numpy_helper
from support import Lazy

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion import quantize
from cxr_edge.export.conversion.build import build_bundle
from cxr_edge.export.conversion.onnx import OPSET, REDUCED
from cxr_edge.runtime import load
from cxr_edge.train.fit.models import build

keras = Lazy("keras")

SYMMETRIC = "model.int8.symmetric.onnx"


@pytest.fixture(scope="module")
def network(run):
    return Run.open(run).network()


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms, ("train",))[:24])


@pytest.fixture(scope="module")
def optional(run, phantoms, tmp_path_factory):
    """The files that are only written by name."""
    folder = tmp_path_factory.mktemp("optional") / "bundle"
    build_bundle(run, folder, phantoms, [SYMMETRIC], 32, step=lambda name: None)
    return folder


@pytest.fixture
def layer():
    """Weights (32, 8) and correlated inputs (500, 32)."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(500, 6)) @ random.normal(size=(6, 32)) + 0.3 * random.normal(size=(500, 32))
    return random.normal(size=(32, 8)).astype(np.float32), inputs


@pytest.mark.parametrize("steps", [127, 64])
def test_a_kernel_is_rounded_to_integers_that_a_quantiser_finds_again(layer, steps):
    kernel, inputs = layer
    rounded = quantize.round_kernel(kernel, np.cov(inputs.T), steps)
    largest = np.abs(kernel).max(axis=0)
    np.testing.assert_allclose(np.abs(rounded).max(axis=0), largest, rtol=1e-6)
    integers = rounded / largest * steps
    np.testing.assert_allclose(integers, integers.round(), atol=1e-4)


def test_a_rounded_kernel_changes_outputs_less_than_rounding_to_the_nearest(layer):
    kernel, inputs = layer
    scale = np.abs(kernel).max(axis=0) / 127
    nearest = np.round(kernel / scale) * scale
    rounded = quantize.round_kernel(kernel, np.cov(inputs.T), 127)
    assert np.var(inputs @ (rounded - kernel)) < 0.5 * np.var(inputs @ (nearest - kernel))


def test_a_dead_channel_keeps_a_scale_that_its_bias_fits():
    kernel = np.ones((4, 2), np.float32)
    kernel[:, 1] = 0
    rounded = quantize.round_kernel(kernel, np.eye(4), 127)
    assert np.abs(rounded[:, 1]).max() == pytest.approx(quantize.LEAST)


def test_rounding_a_network_keeps_each_channels_mean(network, pixels):
    before = network.get_weights()
    rounded = quantize.round_weights(network, pixels)
    for kept, weights in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weights)
    name = quantize._convolutions(network)[-1].name
    exact, changed = (
        keras.Model(n.inputs[0], n.get_layer(name).output)(pixels.astype(np.float32)).numpy()
        for n in (network, rounded)
    )
    error = changed - exact
    assert 0 < error.var() < 0.01 * exact.var()
    np.testing.assert_allclose(error.mean(axis=(0, 1, 2)), 0, atol=1e-4)


def test_float_layers_are_the_first_few():
    assert quantize.float_layers(build("mobilenetv2", "none")) == {
        "Conv1",
        "expanded_conv_depthwise",
        "expanded_conv_project",
        "block_1_expand",
    }


def operators(path):
    """Name, input types of every node but the delegate's; then the delegate nodes and the interpreter."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    types = {t["index"]: np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
    nodes = interpreter._get_ops_details()
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    own = [(n["op_name"], [types.get(i) for i in n["inputs"]]) for n in nodes if n["op_name"] != "DELEGATE"]
    return own, delegates, interpreter


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_delegate_takes_the_whole_graph(bundle, precision):
    _, delegates, interpreter = operators(bundle / f"model.{precision}.tflite")
    assert len(delegates) == 1
    # One partition that reads the image and makes every output: no operator is left before, after or between.
    assert interpreter.get_input_details()[0]["index"] in delegates[0]["inputs"]
    assert {o["index"] for o in interpreter.get_output_details()} <= set(delegates[0]["outputs"])


def test_the_int8_tflite_file_convolves_in_integers(bundle, network):
    own, _, interpreter = operators(bundle / "model.int8.tflite")
    convolutions = [types for name, types in own if "CONV_2D" in name]
    integer = [types for types in convolutions if types[:2] == ["int8", "int8"]]
    # All but the first, finest ones and the head's matrix.
    assert len(convolutions) - len(integer) == len(quantize.float_layers(network)) + 1
    image = interpreter.get_input_details()[0]
    assert image["dtype"] is np.uint8 and image["quantization"] == (1.0, 0)
    assert all(o["dtype"] is np.float32 for o in interpreter.get_output_details())


def constants(path):
    model = onnx_package.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return model, values


def test_the_int8_onnx_file_holds_seven_bit_weights(bundle, network):
    model, values = constants(bundle / "model.int8.onnx")
    kernels = [v for v in values.values() if v.dtype == np.int8 and v.ndim == 4]
    assert len(kernels) == len(quantize._convolutions(network)) - len(quantize.float_layers(network))
    assert max(np.abs(k.astype(int)).max() for k in kernels) == REDUCED
    activations = [values[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert activations and all(zero_point.dtype == np.uint8 for zero_point in activations)


def test_the_symmetric_file_is_what_tensorrt_reads(optional):
    model, values = constants(optional / SYMMETRIC)
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    points = [values[node.input[2]] for node in pairs]
    assert points and all(p.dtype == np.int8 and not p.any() for p in points)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8.onnx"])
def test_onnx_files_are_clean(bundle, name):
    model = onnx_package.load(bundle / name)
    onnx_package.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Transpose") <= 1  # of the cells, before the heatmap
    assert model.opset_import[0].version == OPSET and model.producer_name == "cxr-edge"
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_int8_files_decide_and_explain_as_the_exact_one(bundle, phantoms):
    paths = [image.path for image in read_dataset(phantoms, ("train",))[::3]]
    exact, *rounded = (
        list(load(bundle, engine, precision).predict_many(paths))
        for engine, precision in (("onnx", "fp32"), ("onnx", "int8"), ("litert", "int8"))
    )
    logits = np.array([p.logit for p in exact])
    for predictions in rounded:
        error = np.array([p.logit for p in predictions]) - logits
        assert np.abs(error).max() < 0.1 * np.ptp(logits)
    assert json.loads((bundle / "manifest.json").read_text())["calibration"]["images"] == 32

"""gradient.onnx against GradientTape on whole networks, and each rule against finite differences."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import SHARED, Lazy, needs_shared

from cxr_edge.common.run import Novelty
from cxr_edge.export.conversion.gradient import RULES, gradient_model
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.conversion.onnx import onnx_from_keras
from cxr_edge.runtime import BundleError
from cxr_edge.train.fit.models import build

fold = Lazy("cxr_edge.train.fit.fold")

BACKBONE = SHARED / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def keep_signals_alive(network):
    """Draw weights that neither fade nor explode (He et al. 2015), and biases: zeros sit on the edge of a ReLU."""
    random = np.random.default_rng(0)
    for layer in network.layers:
        drawn = []
        for value in layer.get_weights():
            fan_in = np.prod(value.shape[:2] if "Depthwise" in type(layer).__name__ else value.shape[:-1])
            drawn.append(random.normal(0, 0.1 if value.ndim == 1 else np.sqrt(2 / fan_in), value.shape))
        layer.set_weights(drawn)


def in_double_precision(network):
    """The same network in float64: in float32, the rounding errors of a tape depend on TensorFlow's kernels."""
    import keras

    def clone(layer):
        return type(layer).from_config(layer.get_config() | {"dtype": "float64"})

    exact = keras.models.clone_model(network, clone_function=clone)
    exact.set_weights(network.get_weights())
    return exact


def exported(network):
    channels = network.get_layer("pool").input.shape[-1]
    novelty = Novelty(
        np.zeros(channels, np.float32),
        np.eye(channels, 4, dtype=np.float32),
        np.eye(channels, 2, dtype=np.float32),
        np.zeros(2, np.float32),
        1.0,
    )
    return onnx_from_keras(deployment_model(network, 1.7, novelty))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "weights", "size"),
    [
        ("cnn", "none", 96),
        ("resnet50", "none", 64),
        pytest.param("mobilenetv2", str(BACKBONE), 224, marks=needs_shared),
        ("mobilenetv2", "none", 96),
    ],
)
def test_the_gradient_is_gradienttapes(arch, weights, size):
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    network = fold.deployable(build(arch, weights, size))
    if weights == "none":
        keep_signals_alive(network)
    model = gradient_model(exported(network))
    images = np.random.default_rng(0).uniform(0, 255, (15, size, size, 1)).astype(np.float32)
    exact = in_double_precision(network)
    with tf.GradientTape() as tape:
        points = tf.Variable(images.astype(np.float64))
        logit = exact(points, training=False)[:, 0]
    expected = tape.gradient(logit, points).numpy()
    assert np.abs(expected).max(axis=(1, 2, 3)).min() > 0

    engine = session(model)
    gradient, logits = engine.run(["gradient", "logit"], {"image": images})
    np.testing.assert_allclose(logits, logit.numpy(), atol=1e-4, rtol=1e-4)
    got, exact_gradient = gradient.reshape(len(images), -1), expected.reshape(len(images), -1)
    cosine = (got * exact_gradient).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(exact_gradient, axis=1)
    worst_pixel = np.abs(got - exact_gradient).max(1) / np.abs(exact_gradient).max(1)
    # A wrong rule shows in every image. In some images a ReLU stands at 0 on noise: a rounding error decides whether
    # it counts, and moves all pixels that it sees. The exact gradient jumps in the same way if the pixels change by
    # 3e-7 of themselves: on 24 images, single pixels of the random MobileNetV2 by up to 0.11.
    assert np.median(worst_pixel) <= 1e-5
    assert cosine.min() >= 0.9999
    one_by_one = np.concatenate([engine.run(["gradient"], {"image": image[np.newaxis]})[0] for image in images])
    np.testing.assert_allclose(one_by_one, gradient, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.slow
def test_the_file_holds_each_weight_once_and_only_the_way_to_the_logit():
    network = build("cnn", "none", 96)
    forward = exported(network)
    model = gradient_model(forward)
    assert model.ByteSize() < forward.ByteSize() + 20_000
    assert [value.name for value in model.graph.input] == ["image"]
    assert {value.name for value in model.graph.output} == {"gradient", "logit"}
    assert model.graph.output[1].type.tensor_type.shape.dim[0].dim_param == "N"
    assert not {"Sqrt", "Sigmoid"} & {node.op_type for node in model.graph.node}  # novelty and probability are gone


def small_graph(nodes, constants, shape, outputs=None):
    """image (N, *shape) -> the nodes -> weighted sum over all as `logit` (N,)."""
    weights = np.random.default_rng(3).normal(size=(outputs or int(np.prod(shape)), 1)).astype(np.float32)
    constants = constants | {"to_flat": np.array([0, -1], np.int64), "w": weights, "axis": np.array([1], np.int64)}
    tail = [
        helper.make_node("Reshape", ["last", "to_flat"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], ["logit"]),
    ]
    graph = helper.make_graph(
        [*nodes, *tail], "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op_type, *inputs, **attributes):
    return helper.make_node(op_type, inputs, ["last"], **attributes)


def values(*shape):
    return np.random.default_rng(4).normal(size=shape).astype(np.float32)


def integers(*numbers):
    return np.array(numbers, np.int64)


WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}
# name: nodes, constants, shape of an image, values for each image behind the nodes (as many as before if None)
CASES = {
    "Add": ([node("Add", "c", "image")], {"c": values(4)}, (3, 4), None),
    "Add twice": ([node("Add", "image", "image")], {}, (3, 4), None),
    "Sub": ([node("Sub", "c", "image")], {"c": values(4)}, (3, 4), None),
    "Mul": ([node("Mul", "image", "c")], {"c": values(3, 1)}, (3, 4), None),
    "Mul by itself": ([node("Mul", "image", "image")], {}, (3, 4), None),
    "Div": ([node("Div", "image", "c")], {"c": values(4)}, (3, 4), None),
    "Cast": ([node("Cast", "image", to=TensorProto.FLOAT)], {}, (3,), None),
    "Identity": ([node("Identity", "image")], {}, (3,), None),
    "Relu": ([node("Relu", "image")], {}, (3, 4), None),
    "Clip": (
        [node("Clip", "image", "a", "b")],
        {"a": np.array(-0.5, np.float32), "b": np.array(0.7, np.float32)},
        (3, 4),
        None,
    ),
    "Conv": (
        [node("Conv", "image", "c", **WINDOW, pads=[0, 1, 1, 0])],
        {"c": values(5, 2, 3, 3)},
        (2, 8, 7),
        5 * 4 * 3,
    ),
    "Conv, dilated": (
        [node("Conv", "image", "c", kernel_shape=[3, 3], dilations=[2, 2])],
        {"c": values(5, 2, 3, 3)},
        (2, 8, 7),
        5 * 4 * 3,
    ),
    "Conv, depthwise": (
        [node("Conv", "image", "c", group=2, **WINDOW)],
        {"c": values(2, 1, 3, 3)},
        (2, 8, 8),
        2 * 3 * 3,
    ),
    "MaxPool": ([node("MaxPool", "image", **WINDOW)], {}, (2, 8, 7), 2 * 3 * 3),
    "MaxPool, padded": ([node("MaxPool", "image", **WINDOW, pads=[1, 1, 1, 1])], {}, (2, 8, 7), 2 * 4 * 4),
    "Pad": ([node("Pad", "image", "c")], {"c": integers(0, 0, 1, 2, 0, 0, 3, 0)}, (2, 3, 3), 2 * 7 * 5),
    "GlobalAveragePool": ([node("GlobalAveragePool", "image")], {}, (2, 3, 4), 2),
    "ReduceMean": ([node("ReduceMean", "image", axes=[2, 3], keepdims=0)], {}, (2, 3, 4), 2),
    "ReduceMean, kept": ([node("ReduceMean", "image", axes=[1], keepdims=1)], {}, (2, 3), 3),
    "MatMul": ([node("MatMul", "image", "c")], {"c": values(4, 2)}, (3, 4), 6),
    "Gemm": ([node("Gemm", "image", "c", "d", alpha=0.5, transB=1)], {"c": values(2, 4), "d": values(2)}, (4,), 2),
    "Flatten": ([node("Flatten", "image")], {}, (3, 4), None),
    "Reshape": ([node("Reshape", "image", "c")], {"c": integers(-1, 4, 3)}, (3, 4), None),
    "Squeeze": ([node("Squeeze", "image", "c")], {"c": integers(1)}, (1, 4), None),
    "Unsqueeze": ([node("Unsqueeze", "image", "c")], {"c": integers(1)}, (3, 4), None),
    "Transpose": ([node("Transpose", "image", perm=[0, 3, 1, 2])], {}, (2, 3, 4), None),
}


def test_every_rule_has_a_case():
    assert {name.split(",")[0].split()[0] for name in CASES} == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_agrees_with_finite_differences(name):
    model = small_graph(*CASES[name])
    image = np.random.default_rng(5).normal(size=(2, *CASES[name][2])).astype(np.float32)
    gradient = session(gradient_model(model)).run(["gradient"], {"image": image})[0]
    forward = session(model)
    step = 1e-3
    numeric = np.zeros_like(image)
    for position in np.ndindex(image.shape[1:]):
        shift = np.zeros_like(image)
        shift[(slice(None), *position)] = step
        up, down = (forward.run(["logit"], {"image": image + sign * shift})[0] for sign in (1, -1))
        numeric[(slice(None), *position)] = (up - down) / (2 * step)
    assert np.abs(numeric).max() > 0
    np.testing.assert_allclose(gradient, numeric, atol=5e-3)


@pytest.mark.parametrize(
    ("nodes", "constants", "names"),
    [
        ([node("Softplus", "image")], {}, "Softplus"),
        ([node("Div", "c", "image")], {"c": values(4)}, "Div"),
        ([node("Add", "c", "image")], {"c": values(1, 2, 4)}, "Add"),
    ],
)
def test_an_operator_without_a_rule_is_named(nodes, constants, names):
    with pytest.raises(BundleError, match=f"no gradient through {names}"):
        gradient_model(small_graph(nodes, constants, (1, 4)))


@pytest.mark.slow
def test_the_file_is_valid_onnx():
    model = gradient_model(exported(build("cnn", "none", 96)))
    onnx.checker.check_model(model, full_check=True)
    used = {name for each in model.graph.node for name in each.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used

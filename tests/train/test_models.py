import numpy as np
import pytest
from support import SHARED, needs_shared

from cxr_edge.runtime import DataError, UsageError
from cxr_edge.train.fold import deployable
from cxr_edge.train.models import ARCHITECTURES, GEOMETRY, build

WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"


def randomise_norms(network):
    """Batch norms as after training, not as initialised."""
    import keras

    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_heatmap_geometry_is_where_the_gradient_lies(arch):
    """The mean position of d cell / d pixel, over random networks, is the centre that `GEOMETRY` claims."""
    import keras
    import tensorflow as tf

    geometry = GEOMETRY[arch]
    image = tf.constant(np.random.default_rng(1).uniform(0, 255, (1, 224, 224, 1)).astype(np.float32))
    centres = []
    for _ in range(3):
        network = build(arch, "none")
        backbone = keras.Model(network.inputs[0], network.get_layer("pool").input)
        with tf.GradientTape() as tape:
            tape.watch(image)
            cell = tf.reduce_sum(backbone(image)[:, 3, 3])
        energy = tape.gradient(cell, image).numpy()[0, :, :, 0] ** 2
        grid = np.arange(224)
        centres.append([(energy.sum(axis=a) * grid).sum() / energy.sum() for a in (0, 1)])
    expected = geometry.origin + 3 * geometry.stride
    # A half-cell shift would be 16 pixels.
    np.testing.assert_allclose(np.mean(centres, axis=0), expected, atol=5)


@needs_shared
def test_grey_weights_compute_what_the_rgb_network_does():
    import keras

    grey = build("mobilenetv2", str(WEIGHTS))
    rgb = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(224, 224, 3))
    rgb.load_weights(WEIGHTS)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 1)).astype(np.float32)
    features = keras.Model(grey.inputs[0], grey.get_layer("pool").input)
    expected = rgb.predict(np.repeat(pixels / 127.5 - 1, 3, axis=3), verbose=0)
    np.testing.assert_allclose(features.predict(pixels, verbose=0), expected, atol=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_deployable_network_is_the_same_up_to_half_precision(arch):
    network = build(arch, "none")
    randomise_norms(network)
    folded = deployable(network)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 1)).astype(np.float32)
    before, after = (m.predict(pixels, verbose=0) for m in (network, folded))
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max() + 1e-3)
    assert not any("BatchNormalization" in type(layer).__name__ for layer in folded.layers)
    for weight in folded.get_weights():
        np.testing.assert_array_equal(weight, weight.astype(np.float16).astype(np.float32))


def test_wrong_weights_and_names_are_clear(tmp_path):
    (tmp_path / "x.weights.h5").write_bytes(b"no weights")
    with pytest.raises(DataError, match="not the weights of mobilenetv2"):
        build("mobilenetv2", str(tmp_path / "x.weights.h5"))
    with pytest.raises(UsageError, match="no ImageNet weights"):
        build("cnn", "imagenet")
    with pytest.raises(UsageError, match="mobilenetv2"):
        build("vgg16", "none")

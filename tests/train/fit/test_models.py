import numpy as np
import pytest
from support import SHARED, Lazy, needs_shared

from cxr_edge.runtime import DataError, UsageError
from cxr_edge.train.fit.models import ARCHITECTURES, build

fold = Lazy("cxr_edge.train.fit.fold")
geometry = Lazy("cxr_edge.train.fit.geometry")

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(60, 190, (4, 224, 224, 1), dtype=np.uint8)
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"


def randomise_norms(network):
    """Batch norms as after training, not as initialised."""
    import keras

    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])


def test_geometry_of_a_network_without_padding_shifts_is_that_of_equal_tiles():
    found = geometry.heatmap_geometry(build("cnn", "none"), PIXELS)
    assert found.stride == 32
    # Cell 0 looks at the middle of the first tile; a half-cell shift would be 16 pixels.
    assert found.origin == pytest.approx(15.5, abs=3)


def test_geometry_of_untrained_mobilenet_is_what_its_padding_says():
    assert geometry.heatmap_geometry(build("mobilenetv2", "none"), PIXELS).origin == pytest.approx(31, abs=6)


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


def test_a_smooth_network_is_the_plain_one_on_smoothed_images():
    import cv2
    import keras

    plain, smooth = (build("cnn", "none", smooth=smooth) for smooth in (False, True))
    smooth.set_weights(
        [w for layer in smooth.layers for w in layer.get_weights() if layer.name == "smooth"] + plain.get_weights()
    )
    row = np.array([1, 4, 6, 4, 1]) / 16
    images = [
        cv2.sepFilter2D(image.astype(np.float32), -1, row, row, borderType=cv2.BORDER_CONSTANT) for image in PIXELS
    ]
    expected = plain.predict(np.stack(images)[..., np.newaxis], verbose=0)
    np.testing.assert_allclose(smooth.predict(PIXELS, verbose=0), expected, rtol=1e-4)
    filtered = keras.Model(smooth.inputs[0], smooth.get_layer("smooth").output)
    folded = fold.deployable(smooth).get_layer("smooth").get_weights()[0]
    np.testing.assert_array_equal(folded, filtered.get_layer("smooth").get_weights()[0])  # exact in half precision


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_deployable_network_is_the_same_up_to_half_precision(arch):
    import keras

    keras.utils.set_random_seed(0)
    network = build(arch, "none")
    randomise_norms(network)
    folded = fold.deployable(network)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 1)).astype(np.float32)
    before, after = (m.predict(pixels, verbose=0) for m in (network, folded))
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max() + 1e-3)
    assert not any("BatchNormalization" in type(layer).__name__ for layer in folded.layers)
    for weight in folded.get_weights():
        np.testing.assert_array_equal(weight, weight.astype(np.float16).astype(np.float32))


def test_the_border_crop_is_part_of_the_network():
    """Changing what it cuts off changes nothing; the geometry of the heatmap knows of it."""
    network = build("cnn", "none", size=96, border_crop=0.125)
    pixels = np.random.default_rng(0).integers(60, 190, (2, 96, 96, 1), dtype=np.uint8)
    framed = pixels.copy()
    framed[:, :12] = framed[:, -12:] = framed[:, :, :12] = framed[:, :, -12:] = 255
    before, after = (network.predict(each, verbose=0) for each in (pixels, framed))
    np.testing.assert_array_equal(before, after)
    found = geometry.heatmap_geometry(fold.deployable(network), pixels)
    assert found.stride == 24
    assert found.origin == pytest.approx(12 + 24 / 2 - 0.5, abs=3)


def test_alpha_is_the_width():
    assert (
        build("mobilenetv2", "none", size=64, alpha=0.35).count_params()
        < 0.3 * build("mobilenetv2", "none", size=64).count_params()
    )


def test_imagenet_weights_without_a_network_say_what_else_there_is(monkeypatch, tmp_path):
    """Where nothing answers, and Keras has not stored them before."""
    from keras.src.utils import file_utils

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"pass a \.weights\.h5 file to --weights, or none"):
        build("mobilenetv2", "imagenet", size=96, alpha=0.35)
    with pytest.raises(UsageError, match="alpha"):
        build("mobilenetv2", "imagenet", size=96, alpha=0.6)


def test_wrong_weights_and_names_are_clear(tmp_path):
    (tmp_path / "x.weights.h5").write_bytes(b"no weights")
    with pytest.raises(DataError, match="not the weights of mobilenetv2"):
        build("mobilenetv2", str(tmp_path / "x.weights.h5"))
    with pytest.raises(UsageError, match="no ImageNet weights"):
        build("cnn", "imagenet")
    with pytest.raises(UsageError, match="mobilenetv2"):
        build("vgg16", "none")

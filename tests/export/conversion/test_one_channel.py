"""Filters of one channel in two passes."""

import numpy as np
import pytest
from support import Lazy, needs_litert

from cxr_edge.export.conversion.one_channel import split_filters
from cxr_edge.export.conversion.tflite import tflite_from_keras
from cxr_edge.train.fit.models import build

fold = Lazy("cxr_edge.train.fit.fold")
keras = Lazy("keras")

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 1)).astype(np.float32)


def a_network(kernel, **options):
    image = keras.Input((48, 32, 1), name="image")
    filtered = keras.layers.DepthwiseConv2D(kernel.shape, name="filter", **({"padding": "same"} | options))
    network = keras.Model(image, keras.layers.Conv2D(3, 3, name="after")(filtered(image)))
    filtered.set_weights([kernel[:, :, None, None].astype(np.float32), *filtered.get_weights()[1:]])
    return network


def test_two_passes_give_the_same_as_one():
    # Different weights along columns and rows, and a height that is not the width.
    network = a_network(np.outer([1, -2, 4, 0.5, 2], [3, 1, -1]), use_bias=False)
    split = split_filters(network)
    assert split is not network and [layer.name for layer in split.layers] == [layer.name for layer in network.layers]
    channels = [layer.input.shape[-1] for layer in split.get_layer("filter").layers if "depthwise" in layer.name]
    assert channels == [32, 48]
    expected = network.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(split.predict(IMAGES, verbose=0), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (np.eye(3), {"use_bias": False}),
        (np.ones((3, 3)), {"use_bias": True}),
        (np.ones((3, 3)), {"use_bias": False, "strides": 2}),
        (np.ones((3, 3)), {"use_bias": False, "padding": "valid"}),
    ],
)
def test_other_filters_stay(kernel, options):
    network = a_network(kernel, **options)
    assert split_filters(network) is network


@pytest.mark.slow
@needs_litert
def test_a_tflite_file_of_a_smoothing_network_has_no_filter_of_one_channel(tmp_path):
    from cxr_edge.benchmarks.graph.counts import count_tflite

    network = fold.deployable(build("cnn", "none", smooth=True))
    works = {}
    for name, each in (("whole", network), ("split", split_filters(network))):
        (tmp_path / name).write_bytes(tflite_from_keras(keras.Model(each.input, {"logit": each.output})))
        works[name] = count_tflite(tmp_path / name)
    assert works["whole"][0].macs == 224 * 224 * 25
    assert [work.macs for work in works["split"][:2]] == [224 * 224 * 5] * 2
    assert [work.macs for work in works["split"][2:]] == [work.macs for work in works["whole"][1:]]

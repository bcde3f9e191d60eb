import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.train.evaluation.randomisation import DRAWS, PARTS, _steps, cascade
from cxr_edge.train.evaluation.subject import open_subject
from cxr_edge.train.fit.models import build


def test_heatmaps_of_a_network_that_forgets_are_others(run, phantoms):
    subject = open_subject(run)
    last = subject.network.get_layer("logit")
    last.set_weights([abs(last.get_weights()[0]), last.get_weights()[1]])  # everything speaks for pneumonia
    before = subject.network.get_weights()
    pixels = read_pixels(read_dataset(phantoms, ("test",))[::3])
    original = subject.run(pixels).heatmap
    assert original.max(axis=(1, 2)).min() > 0

    found = cascade(subject.network, lambda x: subject.run(x).heatmap, pixels, original)
    assert [step.layers for step in found[:2]] == ["logit", "hidden"] and len(found) == 2 + PARTS
    assert all(len(step.draws) == DRAWS and step.correlation == pytest.approx(np.mean(step.draws)) for step in found)
    assert all(0 <= step.flat <= 1 for step in found)
    assert all(step.correlation < 0.7 for step in found)
    for one, other in zip(before, subject.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(subject.run(pixels).heatmap, original)


@pytest.mark.parametrize("arch", ["cnn", "mobilenetv2"])
def test_every_layer_forgets_once_from_the_head_down(arch):
    network = build(arch, "none", size=96)
    forgotten = [layer.name for layers in _steps(network).values() for layer in layers]
    assert sorted(forgotten) == sorted(layer.name for layer in network.layers if layer.weights)
    assert forgotten[:2] == ["logit", "hidden"]

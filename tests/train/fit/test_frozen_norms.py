"""Batch norms of a pretrained network stay as they are through both phases; those of a new network are trained."""

from __future__ import annotations

import numpy as np
import pytest
from support import Lazy

from cxr_edge.train.fit.config import Part, TrainConfig
from cxr_edge.train.fit.distribute import Replicas
from cxr_edge.train.fit.models import build

keras = Lazy("keras")
loop = Lazy("cxr_edge.train.fit.loop")
resume = Lazy("cxr_edge.train.fit.resume")

PART = Part([], np.random.default_rng(0).integers(0, 256, (16, 64, 64, 1), dtype=np.uint8), np.arange(16) % 2)


def values_of(network: keras.Model, norms: bool) -> dict[str, np.ndarray]:
    """Weight by name: of the batch norms, or of all other layers."""
    return {
        weight.path: weight.numpy().copy()
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization) is norms
        for weight in layer.weights
        if "seed" not in weight.path
    }


def unchanged(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if np.array_equal(before[name], after[name])}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["pretrained", "none"])
def test_fitting_changes_the_norms_of_a_new_network_only(weights, tmp_path):
    """Scale, offset, moving mean and moving variance of each."""
    keras.utils.set_random_seed(0)
    config = TrainConfig("cnn", weights, size=64, epochs=2, batch_size=8, learning_rate=1e-2, augment=False)
    network, state = config.build(), resume.TrainingState(tmp_path, {}, False)
    norms, others = values_of(network, norms=True), values_of(network, norms=False)
    loop.fit(network, PART, PART, config, Replicas(), state, tmp_path / "best.weights.h5", [])
    assert len(norms) == 20  # five norms
    assert unchanged(norms, values_of(network, norms=True)) == (set(norms) if weights == "pretrained" else set())
    assert not unchanged(others, values_of(network, norms=False))


@pytest.mark.slow
def test_each_phase_trains_the_layers_that_it_should():
    network = build("mobilenetv2", "none", size=64, alpha=0.35, smooth=True)
    norms = {layer.name for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)}

    def trained() -> set[str]:
        return {layer.name for layer in network.layers if layer.trainable_weights}

    everything = trained()  # the filter "smooth" is fixed from the start
    assert "smooth" in {layer.name for layer in network.layers} - everything
    assert len(norms) == 52 and norms < everything
    loop.set_trainable(network, head_only=True, norms=False)
    assert trained() == {"hidden", "logit"}
    loop.set_trainable(network, head_only=False, norms=False)
    assert trained() == everything - norms
    loop.set_trainable(network, head_only=False, norms=True)
    assert trained() == everything

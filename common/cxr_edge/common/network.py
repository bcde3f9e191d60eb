"""The trained network in Keras, with the outputs of the deployment graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.run import Novelty
from cxr_edge.common.statistics import to_probability
from cxr_edge.runtime.engines import Outputs

if TYPE_CHECKING:
    import keras

Runner = Callable[[Pixels], Outputs]


def keras_runner(network: keras.Model, temperature: float, novelty: Novelty) -> Runner:
    """Run the trained network, with Grad-CAM (Selvaraju et al. 2017) in the closed form that its head allows.

    With A the last feature map, W1 the hidden layer and w2 the last: map = ReLU(A W1 · (w2 ⊙ 1[hidden > 0])) / cells.
    """
    import keras

    hidden, last = network.get_layer("hidden"), network.get_layer("logit")
    tapped = [network.get_layer(name).output for name in novelty.layers]
    decoded = network.outputs[1:]
    maps = keras.Model(network.inputs[0], [*network.outputs, *tapped, network.get_layer("pool").input])

    def run(pixels: Pixels) -> Outputs:
        kernel, bias = hidden.get_weights()
        weight = last.get_weights()[0][:, 0]
        logit, *seen = maps.predict_on_batch(pixels.astype(np.float32))
        lungs, seen = seen[: len(decoded)], seen[len(decoded) :]
        features = seen[-1]
        count, height, width, channels = features.shape
        per_cell = (features.reshape(-1, channels) @ kernel).reshape(count, height, width, -1)  # one large product
        active = per_cell.mean(axis=(1, 2)) + bias > 0
        heat = np.maximum(np.einsum("nhwk,nk->nhw", per_cell, active * weight), 0)
        heatmap = (heat / (height * width)).astype(np.float32)
        means = np.concatenate([each.mean(axis=(1, 2)) for each in seen], axis=1)
        unlike = novelty.beyond(means) if novelty.names else None
        found = to_probability(lungs[0][..., 0], 1.0) if lungs else None
        probability = to_probability(logit[:, 0], temperature)
        return Outputs(probability, logit[:, 0], heatmap, novelty.of(means), unlike, found)

    return run

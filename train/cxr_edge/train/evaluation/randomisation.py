"""Cascading randomisation of the weights: a heatmap that does not change with them shows only edges.

See Adebayo et al. (2018), Sanity checks for saliency maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.statistics import rank_correlations
from cxr_edge.runtime.engines.base import FloatArray

if TYPE_CHECKING:
    import keras

#: Number of steps below the head; each has about the same number of layers.
PARTS = 4
#: Number of repetitions with other weights, because a single random head may agree by chance.
DRAWS = 5


@dataclass(frozen=True)
class Randomised:
    """The heatmaps after the weights of one more step were randomised, from the head downwards.

    Attributes
    ----------
    layers
        Layers that were randomised in this step; those of earlier steps stay randomised.
    correlation
        Spearman's rank correlation with the original heatmaps over the cells, mean over images and draws. A constant
        map has no ranks and counts as 0.
    draws
        The mean over the images, for each draw.
    flat
        Share of constant maps.
    """

    layers: str
    correlation: float
    draws: tuple[float, ...]
    flat: float


def cascade(
    network: keras.Model, heatmaps_of: Callable[[Pixels], FloatArray], pixels: Pixels, original: FloatArray
) -> tuple[Randomised, ...]:
    """Randomise a network from its head downwards and compare its heatmaps with the original ones.

    The weights are restored at the end.

    Parameters
    ----------
    network, heatmaps_of
        A network, and its heatmaps by its current weights: (N, H, W, 1) uint8 -> (N, h, w) float32 ≥ 0.
    pixels, original
        Images, and the heatmaps of the trained network, none of them constant.
    """
    steps = _steps(network)
    trained = network.get_weights()
    correlations = np.empty((len(steps), DRAWS, len(pixels)))
    try:
        for draw in range(DRAWS):
            random = np.random.default_rng(draw)
            network.set_weights(trained)
            for row, layers in enumerate(steps.values()):
                for layer in layers:
                    _initialise(layer, random)
                correlations[row, draw] = rank_correlations(original, heatmaps_of(pixels))
    finally:
        network.set_weights(trained)
    return tuple(
        Randomised(name, float(known.mean()), tuple(known.mean(axis=1).tolist()), float(np.isnan(found).mean()))
        for name, found in zip(steps, correlations, strict=True)
        for known in [np.nan_to_num(found)]
    )


def _steps(network: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """The layers that are randomised together, from the head downwards."""
    head = ("logit", "hidden")
    below = [layer for layer in network.layers if layer.weights and layer.name not in head]
    steps = {name: [network.get_layer(name)] for name in head}
    last = len(below)
    for part in reversed(np.array_split(np.arange(last), min(PARTS, last))):
        first, final = part[0] + 1, part[-1] + 1
        name = f"convolution {first}" if first == final else f"convolutions {first}–{final}"
        steps[f"{name} of {last}"] = [below[i] for i in part]
    return steps


def _initialise(layer: keras.layers.Layer, random: np.random.Generator) -> None:
    """Draw the kernel as in He et al. (2015) and set the bias to 0."""
    import keras

    kernel, *bias = layer.get_weights()
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    fan_in = np.prod(kernel.shape[: 2 if depthwise else -1])
    values = random.normal(0, np.sqrt(2 / fan_in), kernel.shape).astype(np.float32)
    layer.set_weights([values, *(np.zeros_like(b) for b in bias)])

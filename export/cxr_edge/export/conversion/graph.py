"""The deployment graph, which is the same in every format.

The input `image` is raw uint8 grayscale pixels (N, H, W, 1). The outputs are `probability` (N,), `logit` (N,),
`heatmap` (N, h, w), `novelty` (N,) and, if the kinds of outliers have names, `unlike` (N, M). The graph of a network
with a lung decoder also has `lungs` (N, H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    import keras

    from cxr_edge.common.run import Novelty

#: The smallest normal number in half precision. A hidden unit above it counts as active.
SMALLEST = 2.0**-14


def deployment_model(
    network: keras.Model, temperature: float, novelty: Novelty, input_dtype: str = "uint8"
) -> keras.Model:
    r"""Rewrite a trained classifier as the deployment graph.

    Grad-CAM needs no gradients here. With A the last feature map (H×W×K), the head is
    logit = w2 · ReLU(mean_ij(A_ij) W1 + b1) + b2, so the Grad-CAM weights (Selvaraju et al. 2017) have a closed form:
    alpha = W1 · (w2 ⊙ 1[hidden > 0]) / (H·W), map = ReLU(A · alpha).

    The mean and W1 are linear and commute: U = A W1 (H×W×128) gives hidden = ReLU(mean_ij(U_ij) + b1) *and*
    map = ReLU(U · (w2 ⊙ 1[hidden > 0])) / (H·W). One 1×1 convolution with W1 serves both. As two matrices, W1 would be
    stored twice, once transposed. The mask is min(hidden, tiny) / tiny, because a Cast of a comparison breaks the fp16
    conversion and XNNPACK does not support Sign.

    Parameters
    ----------
    network
        (N, H, W, 1) in [0, 255] -> logit (N, 1), with the layers `pool`, `hidden`, `logit` (see
        `cxr_edge.train.fit.models`). If it has the layer `lungs`, the output `lungs` is the sigmoid of that layer.
    temperature
        probability = sigmoid(logit / temperature) (Guo et al. 2017).
    novelty
        Statistics of the training set's features. The output `novelty` is the norm of two parts: the residual outside
        their main directions, and `unlike`, the excess towards known kinds of outliers.
    input_dtype
        `uint8`, or `float32` if another graph feeds this one.

    Raises
    ------
    BundleError
        If the network does not have this head.
    """
    import keras
    from keras import ops

    try:
        tapped = [network.get_layer(name).output for name in novelty.layers]
        features = network.get_layer("pool").input
        hidden_layer, logit_layer = network.get_layer("hidden"), network.get_layer("logit")
    except ValueError as error:
        raise BundleError(
            f"{network.name}: not a network of cxr-edge train ({error}); train one with `cxr-edge train`"
        ) from error
    weights, bias = hidden_layer.get_weights()
    lungs = lung_logits(network)
    decoded = [] if lungs is None else [lungs]
    wanted = [*decoded, *tapped, features]
    backbone = keras.Model(network.inputs[0], wanted if len(wanted) > 1 else features, name="backbone")
    cells = features.shape[1] * features.shape[2]

    image = keras.Input(network.input_shape[1:], dtype=input_dtype, name="image")
    found = backbone(ops.cast(image, "float32"))
    # Models built on a list return one, and a mean over it would use wrong axes.
    found = found if isinstance(found, list) else [found]
    *early, feature_map = found[len(decoded) :]
    if len(early) != len(tapped):
        found_maps, expected = len(early) + 1, len(tapped) + 1
        raise BundleError(
            f"{network.name}: found {found_maps} outputs of its backbone, expected {expected}; train it again"
        )
    projection = keras.layers.Conv2D(weights.shape[1], 1, use_bias=False, name="hidden_per_cell")
    per_cell = projection(feature_map)
    projection.set_weights([weights[None, None]])
    hidden = ops.relu(ops.mean(per_cell, axis=(1, 2), keepdims=True) + bias)
    logit = ops.squeeze(logit_layer(ops.squeeze(hidden, axis=(1, 2))), axis=1)
    active = ops.minimum(hidden, SMALLEST) / SMALLEST
    per_hidden = active * (ops.squeeze(logit_layer.kernel, axis=1) / cells)
    heatmap = ops.relu(ops.sum(per_cell * per_hidden, axis=-1))
    distance, unlike = _novelty([*early, feature_map], novelty)
    outputs = {"probability": ops.sigmoid(logit / temperature), "logit": logit, "heatmap": heatmap, "novelty": distance}
    if novelty.names:
        outputs["unlike"] = unlike
    if lungs is not None:
        outputs["lungs"] = ops.squeeze(ops.sigmoid(found[0]), axis=-1)
    return keras.Model(image, outputs, name=network.name)


def lung_logits(network: keras.Model) -> Any:
    """The tensor of logits that tiles of the image belong to a lung, (N, h, w, 1); None without a lung decoder."""
    return next((layer.output for layer in network.layers if layer.name == "lungs"), None)


def _novelty(maps: Sequence[Any], novelty: Novelty) -> tuple[Any, Any]:
    """Novelty (N,) and its parts towards the kinds of outliers (N, M), as `Novelty.of` and `Novelty.beyond`."""
    from keras import ops

    early = ops.concatenate([ops.mean(each, axis=(1, 2)) for each in maps[:-1] or maps], axis=1)
    last = ops.mean(maps[-1], axis=(1, 2)) - novelty.mean[-len(novelty.basis) :]
    excess = ops.matmul(early - novelty.mean[: len(novelty.kinds)], novelty.kinds) - novelty.reach
    beyond = ops.relu(excess)
    # The same values once more: the fp16 conversion fails if other nodes read an output, which stays in fp32.
    unlike = excess - ops.minimum(excess, 0.0)
    # The basis is stored twice, once transposed (0.16 MB). |c|² − |cB|² needs it once but loses digits in fp16.
    missed = last - ops.matmul(ops.matmul(last, novelty.basis), np.ascontiguousarray(novelty.basis.T))
    return ops.sqrt(ops.sum(missed * missed, axis=1) + ops.sum(beyond * beyond, axis=1)), unlike

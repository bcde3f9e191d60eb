"""The deployment graph, which is the same in every format.

The input `image` is raw uint8 grayscale pixels (N, H, W, 1). The outputs are `probability` (N,), `logit` (N,),
`heatmap` (N, h, w) and `novelty` (N,). The graph of a network with a lung decoder also has `lungs` (N, H/8, W/8).
"""

from __future__ import annotations

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
        Statistics of the training set's pooled features. The output `novelty` is the norm of two parts: the residual
        outside their main directions, and the excess towards known kinds of outliers.
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
        features = network.get_layer("pool").input
        hidden_layer, logit_layer = network.get_layer("hidden"), network.get_layer("logit")
    except ValueError as error:
        raise BundleError(
            f"{network.name}: not a network of cxr-edge train ({error}); train one with `cxr-edge train`"
        ) from error
    weights, bias = hidden_layer.get_weights()
    lungs = lung_logits(network)
    backbone = keras.Model(network.inputs[0], features if lungs is None else [features, lungs], name="backbone")
    cells = features.shape[1] * features.shape[2]

    image = keras.Input(network.input_shape[1:], dtype=input_dtype, name="image")
    feature_map = backbone(ops.cast(image, "float32"))
    if lungs is not None:
        feature_map, lungs = feature_map
    if isinstance(feature_map, list):  # models built on a list return one; a mean over it would use wrong axes
        raise BundleError(
            f"{network.name}: found {len(feature_map)} outputs of its backbone, expected one; train it again"
        )
    projection = keras.layers.Conv2D(weights.shape[1], 1, use_bias=False, name="hidden_per_cell")
    per_cell = projection(feature_map)
    projection.set_weights([weights[None, None]])
    hidden = ops.relu(ops.mean(per_cell, axis=(1, 2), keepdims=True) + bias)
    logit = ops.squeeze(logit_layer(ops.squeeze(hidden, axis=(1, 2))), axis=1)
    active = ops.minimum(hidden, SMALLEST) / SMALLEST
    per_hidden = active * (ops.squeeze(logit_layer.kernel, axis=1) / cells)
    heatmap = ops.relu(ops.sum(per_cell * per_hidden, axis=-1))
    centred = ops.mean(feature_map, axis=(1, 2)) - novelty.mean
    # The basis is stored twice, once transposed (0.16 MB). |c|² − |cB|² needs it once but loses digits in fp16.
    missed = centred - ops.matmul(ops.matmul(centred, novelty.basis), np.ascontiguousarray(novelty.basis.T))
    beyond = ops.relu(ops.matmul(centred, novelty.kinds) - novelty.reach)
    distance = ops.sqrt(ops.sum(missed * missed, axis=1) + ops.sum(beyond * beyond, axis=1))
    outputs = {"probability": ops.sigmoid(logit / temperature), "logit": logit, "heatmap": heatmap, "novelty": distance}
    if lungs is not None:
        outputs["lungs"] = ops.squeeze(ops.sigmoid(lungs), axis=-1)
    return keras.Model(image, outputs, name=network.name)


def lung_logits(network: keras.Model) -> Any:
    """The tensor of logits that tiles of the image belong to a lung, (N, h, w, 1); None without a lung decoder."""
    return next((layer.output for layer in network.layers if layer.name == "lungs"), None)

"""The deployment graph: the same in every format.

In: `image`, raw uint8 grayscale pixels (N, H, W, 1). Out, by name: `probability` (N,), `logit` (N,),
`heatmap` (N, h, w), `novelty` (N,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    import keras

    from cxr_edge.common.run import Novelty

#: The smallest normal number in half precision: what is greater counts as active.
SMALLEST = 2.0**-14


def deployment_model(
    network: keras.Model, temperature: float, novelty: Novelty, input_dtype: str = "uint8"
) -> keras.Model:
    r"""Rewrite a trained classifier as the deployment graph.

    Grad-CAM without gradients. With A the last feature map (H×W×K), the head is
    logit = w2 · ReLU(mean_ij(A_ij) W1 + b1) + b2, so Grad-CAM's weights (Selvaraju et al. 2017) are closed form:
    alpha = W1 · (w2 ⊙ 1[hidden > 0]) / (H·W), map = ReLU(A · alpha).

    The mean and W1 are linear and commute: U = A W1 (H×W×128) gives hidden = ReLU(mean_ij(U_ij) + b1) *and*
    map = ReLU(U · (w2 ⊙ 1[hidden > 0])) / (H·W). W1 serves both as one 1×1 convolution; as two matrices it would stand
    in the file twice, once transposed. The mask is min(hidden, tiny) / tiny: a Cast of a comparison breaks the fp16
    conversion, and XNNPACK takes no Sign.

    Parameters
    ----------
    network
        (N, H, W, 1) in [0, 255] -> logit (N, 1), with the layers `pool`, `hidden`, `logit` (see
        `cxr_edge.train.fit.models`).
    temperature
        probability = sigmoid(logit / temperature) (Guo et al. 2017).
    novelty
        Of the training set's pooled features; the output `novelty` is the length of what their main directions miss,
        and of how far an image reaches towards known kinds of outliers.
    input_dtype
        `uint8`; `float32` where another graph stands before this one.

    Raises
    ------
    BundleError
        If the network has no such head.
    """
    import keras
    from keras import ops

    try:
        features = network.get_layer("pool").input
        hidden_layer, logit_layer = network.get_layer("hidden"), network.get_layer("logit")
    except ValueError as error:
        raise BundleError(f"{network.name}: not a network of cxr-edge train ({error})") from error
    weights, bias = hidden_layer.get_weights()
    backbone = keras.Model(network.inputs[0], features, name="backbone")
    cells = features.shape[1] * features.shape[2]

    image = keras.Input(network.input_shape[1:], dtype=input_dtype, name="image")
    feature_map = backbone(ops.cast(image, "float32"))
    if isinstance(feature_map, list):  # what a model built on a list returns; a mean over it would average other axes
        raise BundleError(f"{network.name}: its backbone returns {len(feature_map)} tensors instead of one")
    projection = keras.layers.Conv2D(weights.shape[1], 1, use_bias=False, name="hidden_per_cell")
    per_cell = projection(feature_map)
    projection.set_weights([weights[None, None]])
    hidden = ops.relu(ops.mean(per_cell, axis=(1, 2), keepdims=True) + bias)
    logit = ops.squeeze(logit_layer(ops.squeeze(hidden, axis=(1, 2))), axis=1)
    active = ops.minimum(hidden, SMALLEST) / SMALLEST
    per_hidden = active * (ops.squeeze(logit_layer.kernel, axis=1) / cells)
    heatmap = ops.relu(ops.sum(per_cell * per_hidden, axis=-1))
    centred = ops.mean(feature_map, axis=(1, 2)) - novelty.mean
    # The basis twice, once transposed: 0.16 MB. |c|² − |cB|² would need it once, and lose its digits in half precision.
    missed = centred - ops.matmul(ops.matmul(centred, novelty.basis), np.ascontiguousarray(novelty.basis.T))
    beyond = ops.relu(ops.matmul(centred, novelty.kinds) - novelty.reach)
    distance = ops.sqrt(ops.sum(missed * missed, axis=1) + ops.sum(beyond * beyond, axis=1))
    outputs = {"probability": ops.sigmoid(logit / temperature), "logit": logit, "heatmap": heatmap, "novelty": distance}
    return keras.Model(image, outputs, name=network.name)

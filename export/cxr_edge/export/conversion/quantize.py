"""Rounding of weights for int8, the same for every format, with little change of the network's outputs.

Rounding each weight to the nearest step changes logits more than rounding the activations does (docs/quantisation.md).
Each weight may be rounded up or down. Here the direction is chosen by its effect on the output of the layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float32]

#: Largest integer of an int8 weight, when the range is symmetric.
FULL = 127
#: Share of the mean variance that is added to every variance, because constant inputs make the covariance singular.
DAMPING = 0.01
#: A kernel smaller than this gets one weight of this size. Some channels of trained networks are dead: all weights are
#: zero, and the bias gives a constant. For such a kernel, quantisers choose a scale so small that the bias overflows.
LEAST = 1e-4
#: Layers of the head, which stays in floating point.
HEAD = frozenset({"pool", "hidden", "dropout", "logit"})
#: Number of calibration images that the rounding uses; the ranges use all of them.
IMAGES = 50
#: Largest number of positions of a feature map that the statistics of a layer use.
POSITIONS = 50_000


def finest_integer_map(network: keras.Model) -> int:
    """Height in pixels of the finest feature map that is computed in integers."""
    return network.input_shape[1] // 4


def float_layers(network: keras.Model) -> frozenset[str]:
    """The convolutions that an int8 file computes in float: those whose output is finer than a quarter of the image.

    They have at most 1 % of the weights. They have few inputs, so that rounding errors do not average out, and integer
    kernels are slower than float ones there because they pad one input channel to eight.
    """
    finest = finest_integer_map(network)
    return frozenset(layer.name for layer in _convolutions(network) if layer.output.shape[1] > finest)


def round_weights(network: keras.Model, images: npt.NDArray[np.uint8], steps: int = FULL) -> keras.Model:
    """Round the convolutions' weights to integers times a scale of each output channel.

    Layers are rounded in order, on the outputs of the rounded layers before them. First the kernel is rounded
    (`round_kernel`). Then the bias is changed so that the mean of each channel equals that of the exact network (bias
    correction, Nagel et al. 2019).

    Parameters
    ----------
    network
        (N, H, W, 1) in [0, 255] -> logit (N, 1), and the logits of the lungs if it finds them. Its batch norms are
        folded. It is not changed.
    images
        (N, H, W, 1) uint8 in [0, 255], calibration images.
    steps
        Largest integer: `FULL`, or 64 for kernels that add two products in 16 bits, as on x86 without VNNI.

    Returns
    -------
    A copy of the network with rounded weights. Quantisers that take the largest weight of each output channel as the
    end of its range recover the integers.
    """
    import keras

    rounded = keras.models.clone_model(network)
    rounded.set_weights(network.get_weights())
    kept = float_layers(network)
    uses = _uses(network)
    exact, approximate = {}, {}
    for layer in network.layers:
        if layer.name in HEAD:  # Keras sorts the lung decoder between its layers
            continue
        twin = rounded.get_layer(layer.name)
        if isinstance(layer, keras.layers.InputLayer):
            exact[layer.name] = approximate[layer.name] = images.astype(np.float32)
            continue
        sources = _sources(layer)
        target = _call(layer, [exact[name] for name in sources])
        inputs = [approximate[name] for name in sources]
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) and layer.name not in kept:
            _round_layer(twin, inputs[0], target, steps)
        exact[layer.name], approximate[layer.name] = target, _call(twin, inputs)
        for name in sources:  # free feature maps that no later layer reads
            uses[name] -= 1
            if not uses[name]:
                del exact[name], approximate[name]
    return rounded


def round_kernel(kernel: Array, covariance: Array, steps: int) -> Array:
    """Round weights one input at a time; the weights of later inputs compensate for the error.

    This is GPTQ (Frantar et al. 2023), which minimises the squared error of the output over the calibration images.

    Parameters
    ----------
    kernel
        (K, C) float32: K inputs, C output channels.
    covariance
        (K, K) float32, of the inputs. It is not their second moment, because the bias corrects the effect of the means.

    Returns
    -------
    (K, C) float32: integers in [-steps, steps] times max|kernel| / steps of each column. The largest weight is kept.
    """
    kernel = kernel.copy()
    kernel[0, np.abs(kernel).max(axis=0) < LEAST] = LEAST
    largest = np.abs(kernel).max(axis=0)
    scale = largest / steps
    damped = covariance + np.eye(len(covariance)) * (DAMPING * np.trace(covariance) / len(covariance) + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T
    rest = kernel.astype(np.float64)
    chosen = np.empty_like(rest)
    for k in range(len(rest)):
        ends = np.abs(kernel[k]) == largest  # keep it, or a quantiser would find another scale
        nearest = np.clip(np.round(rest[k] / scale), -steps, steps)
        chosen[k] = np.where(ends, np.sign(kernel[k]) * steps, nearest)
        error = (rest[k] - chosen[k] * scale) / factor[k, k]
        rest[k + 1 :] -= np.outer(factor[k, k + 1 :], error)
    return (chosen * scale).astype(np.float32)


def _round_layer(layer: keras.layers.Layer, inputs: Any, target: Any, steps: int) -> None:
    import keras

    kernel, bias = layer.get_weights()
    patches = _patches(layer, inputs)  # (positions, inputs, channels)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        columns = kernel.reshape(-1, kernel.shape[2])
        rounded = np.concatenate(
            [
                round_kernel(columns[:, [c]], np.cov(patches[:, :, c].T, dtype=np.float32), steps)
                for c in range(columns.shape[1])
            ],
            axis=1,
        )
    else:
        rounded = round_kernel(
            kernel.reshape(-1, kernel.shape[3]), np.cov(patches.reshape(len(patches), -1).T, dtype=np.float32), steps
        )
    rounded = rounded.reshape(kernel.shape)
    layer.set_weights([rounded, bias])
    layer.set_weights([rounded, bias + np.mean(target - _call(layer, [inputs]), axis=(0, 1, 2))])


def _patches(layer: keras.layers.Layer, inputs: Any) -> Array:
    """The inputs of each output position of a convolution: (positions, kernel height·width, input channels)."""
    import tensorflow as tf

    (height, width), (down, right) = layer.kernel_size, layer.strides
    found = tf.image.extract_patches(
        inputs, (1, height, width, 1), (1, down, right, 1), (1, 1, 1, 1), layer.padding.upper()
    ).numpy()
    rows = found.reshape(-1, height * width, inputs.shape[3])
    return rows[:: -(-len(rows) // POSITIONS)]


def _call(layer: keras.layers.Layer, inputs: list[Any]) -> Any:
    from keras import ops

    return ops.convert_to_numpy(layer(inputs[0] if len(inputs) == 1 else inputs))


def _convolutions(network: keras.Model) -> list[keras.layers.Layer]:
    import keras

    return [x for x in network.layers if isinstance(x, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)]


def _sources(layer: keras.layers.Layer) -> list[str]:
    """The layers that feed this one."""
    inputs = layer.input if isinstance(layer.input, list) else [layer.input]
    return [tensor._keras_history.operation.name for tensor in inputs]


def _uses(network: keras.Model) -> dict[str, int]:
    import keras

    readers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    names = [name for layer in readers for name in _sources(layer)]
    return {name: names.count(name) for name in names}

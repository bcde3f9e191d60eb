"""Rounding to int8 that keeps what a network computes: weights first, the same for every format.

Rounding each weight to its nearest step moves logits by more than rounding the activations does (docs/quantisation.md).
Which way a weight is rounded is free; here the choice is made by what it does to the layer's output.
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
#: Share of the mean variance that is added to every variance, so that inputs that never vary do no harm.
DAMPING = 0.01
#: A kernel smaller than this gets one weight of this size. Some channels of trained networks are dead, all weights zero
#: and a constant from the bias. Of an all-zero kernel quantisers make a scale so small that the bias overflows 32 bits.
LEAST = 1e-4
#: Calibration images that the rounding looks at; ranges are taken from all of them.
IMAGES = 50
#: Positions of a feature map that a layer's statistics are taken from, at most.
POSITIONS = 50_000


def finest_integer_map(network: keras.Model) -> int:
    """Height of the finest feature map that is computed in integers (pixels)."""
    return network.input_shape[1] // 4


def float_layers(network: keras.Model) -> frozenset[str]:
    """The convolutions that an int8 file computes in float: those whose output is finer than a quarter of the image.

    They hold 1 % of the weights or less. Their few inputs leave a rounding error nothing to be averaged with, and
    integer kernels, which pad one input channel to eight, take longer than float ones.
    """
    finest = finest_integer_map(network)
    return frozenset(layer.name for layer in _convolutions(network) if layer.output.shape[1] > finest)


def round_weights(network: keras.Model, images: npt.NDArray[np.uint8], steps: int = FULL) -> keras.Model:
    """Round the convolutions' weights to integers times a scale of each output channel.

    Layer after layer, on what the rounded layers before it give: kernels as `round_kernel`, then the bias so that each
    channel's mean is that of the exact network (bias correction, Nagel et al. 2019).

    Parameters
    ----------
    network
        (N, H, W, 1) in [0, 255] -> (N, 1), batch norms folded; it stays as it is.
    images
        (N, H, W, 1) uint8 in [0, 255], calibration images.
    steps
        Largest integer: 127, or 64 for kernels that add two products in 16 bits, as those of x86 without VNNI do.

    Returns
    -------
    The same network with other weights. Quantisers that take the largest weight of each output channel as the
    end of its range find the integers again.
    """
    import keras

    rounded = keras.models.clone_model(network)
    rounded.set_weights(network.get_weights())
    kept = float_layers(network)
    uses = _uses(network)
    exact, approximate = {}, {}
    for layer in network.layers:
        if layer.name == "pool":
            break
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
        for name in sources:  # feature maps that nothing reads any more
            uses[name] -= 1
            if not uses[name]:
                del exact[name], approximate[name]
    return rounded


def round_kernel(kernel: Array, covariance: Array, steps: int) -> Array:
    """Round weights one input at a time, and let the inputs still to come make up for the error.

    GPTQ (Frantar et al. 2023), which minimises the squared error of the output over the calibration images.

    Parameters
    ----------
    kernel
        (K, C): K inputs, C output channels.
    covariance
        (K, K) of the inputs. Not their second moment: what the means do, the bias corrects.

    Returns
    -------
    (K, C): integers in [-steps, steps] times max|kernel| / steps of each column, the largest weight itself among them.
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
        ends = np.abs(kernel[k]) == largest  # stays, or a quantiser would find another scale
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
    """What each output position of a convolution sees: (positions, kernel height·width, input channels)."""
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

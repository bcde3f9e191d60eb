"""Peers that run the trained network in Keras, with its own image loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.run import Run
from cxr_edge.common.statistics import to_probability

#: Image file -> (probability, heatmap (h, w)).
Peer = Callable[[Path], tuple[float, npt.NDArray[np.float32]]]


def decider(network: Any) -> Any:
    """The network with its logit (N, 1) as the only output: no peer computes lungs."""
    import keras

    return keras.Model(network.inputs[0], network.outputs[0])


def keras_peers(folder: Path) -> dict[str, Peer]:
    """Two ways to decide and explain with the network of a run.

    `Keras' example` follows Keras' own Grad-CAM example (Chollet 2020): `predict`, then a function that builds the
    gradient model and records another pass. `Keras, one pass` is the minimum with GradientTape: the gradient model is
    built before, and the recorded pass also gives the decision.
    """
    run = Run.open(folder)
    network = decider(run.network())
    prepared = _gradient_model(network)

    def example(path: Path) -> tuple[float, npt.NDArray[np.float32]]:
        array = _load(path, network)
        logit = float(network.predict(array, verbose=0)[0, 0])
        return float(to_probability(np.array(logit), run.temperature)), _gradcam(_gradient_model(network), array)[1]

    def one_pass(path: Path) -> tuple[float, npt.NDArray[np.float32]]:
        logit, heatmap = _gradcam(prepared, _load(path, network))
        return float(to_probability(np.array(logit), run.temperature)), heatmap

    return {"Keras' example": example, "Keras, one pass": one_pass}


def keras_predict(network: Any) -> Callable[[Path], float]:
    """`predict` of Keras: image file -> logit."""
    return lambda path: float(np.ravel(network.predict(_load(path, network), verbose=0))[0])


def keras_function(network: Any) -> Callable[[Path], float]:
    """The network in a `tf.function`: image file -> logit."""
    import tensorflow as tf

    run = tf.function(lambda image: network(image, training=False))
    return lambda path: float(run(tf.constant(_load(path, network))).numpy().ravel()[0])


def _load(path: Path, network: Any) -> npt.NDArray[np.float32]:
    import keras

    image = keras.utils.load_img(path, color_mode="grayscale", target_size=network.input_shape[1:3])
    return np.asarray(keras.utils.img_to_array(image)[np.newaxis])


def _gradient_model(network: Any) -> Any:
    import keras

    return keras.Model(network.inputs[0], [network.get_layer("pool").input, network.outputs[0]])


def _gradcam(model: Any, array: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.float32]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        features, logit = model(array)
    weights = tf.reduce_mean(tape.gradient(logit, features), axis=(0, 1, 2))
    heatmap = tf.nn.relu(tf.squeeze(features @ weights[..., tf.newaxis]))
    return float(logit[0, 0]), heatmap.numpy()

"""What people do without us: Keras, its own image loader, and Grad-CAM by GradientTape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def keras_gradcam(model_file: Path) -> Callable[[Path], tuple[float, npt.NDArray[np.float32]]]:
    """File -> (probability, heatmap (h, w)) as in Keras' own Grad-CAM example (Chollet 2020).

    Parameters
    ----------
    model_file
        A `.keras` file of `cxr-edge train`.
    """
    import keras
    import tensorflow as tf

    network = keras.models.load_model(model_file, compile=False)
    both = keras.Model(network.inputs[0], [network.get_layer("pool").input, network.outputs[0]])
    size = network.input_shape[1:3]

    def explain(path: Path) -> tuple[float, npt.NDArray[np.float32]]:
        image = keras.utils.load_img(path, color_mode="grayscale", target_size=size)
        array = keras.utils.img_to_array(image)[np.newaxis]
        with tf.GradientTape() as tape:
            features, logit = both(array)
            score: Any = logit[:, 0]
        weights = tf.reduce_mean(tape.gradient(score, features), axis=(0, 1, 2))
        heatmap = tf.nn.relu(tf.squeeze(features @ weights[..., tf.newaxis]))
        return float(tf.sigmoid(score)[0]), heatmap.numpy()

    return explain

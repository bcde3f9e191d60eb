"""The reference: outputs of the trained network, computed with Keras and autodiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import to_probability
from cxr_edge.runtime.engines import Outputs

if TYPE_CHECKING:
    import keras

    from cxr_edge.common.run import Novelty

Floats = npt.NDArray[np.float32]
#: Batch size of the Keras network.
BATCH = 32


class Reference:
    """Runs the trained network with Keras and autodiff; every exported file is compared with it.

    It shares no code with the deployment graph. Grad-CAM (Selvaraju et al. 2017) is computed with GradientTape.
    """

    def __init__(self, network: keras.Model, temperature: float, novelty: Novelty) -> None:
        import keras

        pool = network.get_layer("pool")
        lungs = [layer.output for layer in network.layers if layer.name == "lungs"]
        self._decoders = len(lungs)
        tapped = [network.get_layer(name).output for name in novelty.layers]
        self._backbone = keras.Model(network.inputs[0], [*lungs, *tapped, pool.input])
        self._head = keras.Model(pool.input, network.outputs[0])
        self._temperature = temperature
        self._novelty = novelty

    def run(self, images: npt.NDArray[np.uint8], progress: Callable[[int], None] = lambda done: None) -> Outputs:
        """Compute the outputs of (N, H, W, 1) uint8 images; calls `progress` with the number of finished images."""
        parts = []
        for start in range(0, len(images), BATCH):
            parts.append(self._run_batch(images[start : start + BATCH]))
            progress(min(start + BATCH, len(images)))
        return Outputs.concatenate(parts)

    def _run_batch(self, images: npt.NDArray[np.uint8]) -> Outputs:
        import tensorflow as tf

        outputs = self._backbone(images.astype(np.float32), training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]  # a model with one output returns no list
        lungs, maps = outputs[: self._decoders], outputs[self._decoders :]
        features = maps[-1]
        with tf.GradientTape() as tape:
            tape.watch(features)
            logit = self._head(features, training=False)[:, 0]
        weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
        heatmap = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()
        probability = to_probability(logit.numpy(), self._temperature)
        distance, beyond = self._novelty_of(np.concatenate([each.numpy().mean(axis=(1, 2)) for each in maps], axis=1))
        unlike = beyond if self._novelty.names else None
        found = to_probability(lungs[0].numpy()[..., 0], 1.0) if lungs else None
        return Outputs(probability, logit.numpy(), heatmap, distance, unlike, found)

    def _novelty_of(self, features: Floats) -> tuple[Floats, Floats]:
        centred = features - self._novelty.mean
        last = centred[:, -len(self._novelty.basis) :]
        missed = last - last @ self._novelty.basis @ self._novelty.basis.T
        beyond = np.maximum(
            centred[:, : len(self._novelty.kinds)] @ self._novelty.kinds - self._novelty.reach, 0
        ).astype(np.float32)
        return np.linalg.norm(np.concatenate([missed, beyond], axis=1), axis=1).astype(np.float32), beyond

"""The second task of a training with lung masks: find the lungs, and take the evidence for pneumonia from there."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from cxr_edge.common.dataset import Pixels
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry
from cxr_edge.runtime.explanation.gradcam import interpolation
from cxr_edge.train.data.masks import LungMasks
from cxr_edge.train.fit.callbacks import EpochProgress

#: Weight of the loss of the lungs, beside 1 for that of the decision.
LUNG_WEIGHT = 1.0
#: Evidence (logit) at which half of the penalty applies. A heatmap with little evidence says little about its place.
LITTLE_EVIDENCE = 0.5
#: Training of the decoder alone, on original images. One epoch is nearly enough: it has 48,000 weights.
DECODER_EPOCHS, DECODER_BATCH, DECODER_RATE = 3, 32, 1e-3


class LungTask(layers.Layer):
    """Adds two losses for the radiographs that have a mask.

    The first is the cross-entropy of the lungs found, and one minus their Dice coefficient. The second is the share of
    the heatmap's evidence that lies outside the lungs or, in joined radiographs, outside the half with the pneumonia.
    Grad-CAM has a closed form here (see `cxr_edge.export.conversion.graph`), so the penalty is an ordinary term of the
    loss ("right for the right reasons", Ross et al. 2017).

    Parameters
    ----------
    hidden, logit
        The two dense layers of the head.
    places
        (H·W, h·w) float32: weight of each cell of the heatmap at each pixel, from `places_of_cells`.
    evidence_weight
        Weight of the second loss; 0 switches it off.
    """

    def __init__(
        self, hidden: layers.Dense, logit: layers.Dense, places: npt.NDArray[np.float32], evidence_weight: float,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self._hidden, self._logit, self._weight = hidden, logit, evidence_weight
        self._places = places

    def call(
        self, logit: Any, lungs: Any, features: Any, active: Any, masks: Any, known: Any, training: bool = False
    ) -> Any:
        """Return the logit as it is.

        Parameters
        ----------
        logit, lungs
            (N, 1) and (N, H/8, W/8, 1): outputs of the network.
        features, active
            (N, h, w, K) and (N, 128): the last feature map, and the activations of the layer `hidden`.
        masks, known
            (N, H, W, 1) in [0, 255]: the lungs, or (N, H, W, 2): also those parts of them where evidence may lie;
            (N, 1): 1 if the radiograph has a mask, else 0.
        """
        if training:
            known = ops.cast(known[:, 0], "float32")
            masks = ops.cast(masks, "float32") / 255
            self.add_loss(LUNG_WEIGHT * _mean_of(known, lung_loss(lungs, masks[..., :1])))
            if self._weight:
                outside = self._outside(features, active, masks[..., -1:])
                self.add_loss(self._weight * _mean_of(known, outside))
        return logit

    def _outside(self, features: Any, active: Any, masks: Any) -> Any:
        """Share of each heatmap's evidence that lies outside the lungs: (N,) in [0, 1)."""
        cells = features.shape[1] * features.shape[2]
        features, active = ops.cast(features, "float32"), ops.cast(active, "float32")
        per_hidden = ops.cast(active > 0, "float32") * ops.transpose(self._logit.kernel) / cells
        weights = ops.matmul(per_hidden, ops.transpose(self._hidden.kernel))
        heatmap = ops.relu(ops.sum(features * weights[:, None, None, :], axis=-1))
        heatmap = ops.reshape(heatmap, (-1, cells))
        area = self._places.sum(axis=0)
        covered = ops.matmul(ops.reshape(masks, (-1, self._places.shape[0])), self._places) / area
        evidence = heatmap * (area * cells / self._places.shape[0])
        outside = ops.sum(evidence * (1 - covered), axis=1)
        return outside / (ops.sum(evidence, axis=1) + LITTLE_EVIDENCE)


def places_of_cells(geometry: HeatmapGeometry, size: int, cells: int) -> npt.NDArray[np.float32]:
    """Weight of each cell of a heatmap at each pixel of the input, as the heatmap is drawn: (size², cells²) float32."""
    weights = interpolation(size, size, cells, geometry)
    return np.kron(weights, weights)


def with_lung_task(
    network: keras.Model, image: Any, known: Any, geometry: HeatmapGeometry, evidence_weight: float
) -> Any:
    """Apply the network to radiographs and masks, (N, H, W, 2 or 3), augmented; -> logit (N, 1), with both losses."""
    features, hidden = network.get_layer("pool").input, network.get_layer("hidden")
    parts = keras.Model(network.inputs[0], [*network.outputs, features, hidden.output], name="parts")
    places = places_of_cells(geometry, network.input_shape[1], features.shape[1])
    task = LungTask(hidden, network.get_layer("logit"), places, evidence_weight, name="lung_task", dtype="float32")
    return task(*parts(image[..., :1]), image[..., 1:], known)


def lung_loss(lungs: Any, mask: Any) -> Any:
    """Cross-entropy and 1 - Dice of each image: (N, h, w, 1) logits and (N, H, W, 1) masks in [0, 1] -> (N,).

    The target is the share of each cell that the lungs cover. The Dice coefficient has squares in its denominator
    (Milletari et al. 2016), so that shares between 0 and 1 fit best as they are.
    """
    cell = (mask.shape[1] // lungs.shape[1], mask.shape[2] // lungs.shape[2])
    target = ops.average_pool(mask, cell, strides=cell, padding="valid")
    logits = ops.cast(lungs, "float32")
    cross_entropy = ops.mean(ops.binary_crossentropy(target, logits, from_logits=True), axis=(1, 2, 3))
    found = ops.sigmoid(logits)
    both = ops.sum(ops.square(found) + ops.square(target), axis=(1, 2, 3))
    return cross_entropy + 1 - (2 * ops.sum(found * target, axis=(1, 2, 3)) + 1) / (both + 1)


def is_decoder(layer: layers.Layer) -> bool:
    """Whether a layer serves only to find the lungs."""
    return bool(layer.name.startswith("lungs"))


def fit_decoder(network: keras.Model, pixels: Pixels, masks: LungMasks, seed: int) -> None:
    """Fit the layers that find the lungs, in place. All others, and so decision and heatmap, stay as they are.

    Parameters
    ----------
    pixels, masks
        Radiographs, (N, H, W, 1) uint8 in [0, 255], of which some have a mask.
    """
    trained = [layer.trainable for layer in network.layers]
    for layer in network.layers:
        layer.trainable = is_decoder(layer)
    keras.utils.set_random_seed(seed)
    trainer = keras.Model(network.inputs[0], network.outputs[1])
    steps = DECODER_EPOCHS * -(-int(masks.known.sum()) // DECODER_BATCH)
    trainer.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(DECODER_RATE, steps)),
        lambda mask, found: lung_loss(found, ops.cast(mask, "float32") / 255),
    )
    trainer.fit(
        pixels[masks.known], masks.pixels[masks.known], DECODER_BATCH, DECODER_EPOCHS, verbose=0,
        callbacks=[EpochProgress("lungs")],
    )  # fmt: skip
    for layer, before in zip(network.layers, trained, strict=True):
        layer.trainable = before


def _mean_of(known: Any, values: Any) -> Any:
    """Mean over the images with a mask; 0 if a batch has none."""
    return ops.sum(known * values) / ops.maximum(ops.sum(known), 1.0)

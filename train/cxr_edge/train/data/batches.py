"""Batches of labelled radiographs for Keras on any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.run import Floats
from cxr_edge.train.data.masks import LungMasks


class RadiographBatches(keras.utils.PyDataset):
    """Shuffled batches of radiographs held in memory (50 KB each).

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255], from `cxr_edge.common.dataset.read_pixels`.
    labels
        (N,) int in {0, 1}.
    seed
        Seed of the order, which depends on seed and epoch only.
    multiple_of
        The size of every batch is a multiple of this, so that each replica gets an equal share. The last batch is
        filled up with the first images.
    class_weights
        Weight the images so that both classes count the same: n / (2·n_class).
    masks
        Lung masks of the radiographs. They become channel 1 of the pixels, because augmentation moves them with the
        radiograph. They cannot be combined with `mixup`.
    mixup
        Parameter of the Beta distribution from which each image's share in the mixture with its neighbour is drawn
        (Zhang et al. 2018); 0 mixes none. `fit.augment.recipe.PairMix` does the mixing. The batch size must be even.

    Notes
    -----
    An item has pixels (n, H, W, 1) uint8, with mixup also shares (n, 1); targets (n, 1) float32; with class weights
    also weights (n,) float32. With masks, pixels are (n, H, W, 2), and (n, 1) float32 in {0, 1} says which radiographs
    have a mask.
    """

    def __init__(
        self, pixels: Pixels, labels: npt.NDArray[np.integer[Any]], batch_size: int, seed: int,
        *, multiple_of: int = 1, class_weights: bool = False, mixup: float | None = None,
        masks: LungMasks | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._pixels, self._masks = pixels, masks
        self._labels = labels.astype(np.float32)[:, np.newaxis]
        self._weights = (len(labels) / (2 * np.bincount(labels)[labels])).astype(np.float32) if class_weights else None
        self._batch_size, self._multiple_of, self._seed, self._mixup = batch_size, multiple_of, seed, mixup
        self.epoch = 0
        self.on_epoch_begin()

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        pixels, targets = self._pixels[rows], self._labels[rows]
        weights = () if self._weights is None else (self._weights[rows],)
        if self._masks is not None:
            known = self._masks.known[rows, np.newaxis].astype(np.float32)
            return (np.concatenate([pixels, self._masks.pixels[rows]], axis=-1), known), targets, *weights
        if self._mixup is None:
            return pixels, targets, *weights
        shares = self._shares(index, len(rows))
        mixed = (shares * each + (1 - shares) * _neighbours(each) for each in (targets, *(w[:, None] for w in weights)))
        targets, *weights = mixed  # type: ignore[assignment]
        return (pixels, shares), targets, *(w[:, 0] for w in weights)

    def on_epoch_begin(self) -> None:
        """Shuffle by epoch and seed, so that a resumed run has the same order."""
        order = np.random.default_rng((self._seed, self.epoch)).permutation(len(self._labels))
        self._order = np.resize(order, -(-len(order) // self._multiple_of) * self._multiple_of)

    def on_epoch_end(self) -> None:
        """Count the epoch."""
        self.epoch += 1

    def _shares(self, index: int, count: int) -> Floats:
        """Share of each image in its mixture: (n, 1) in [0, 1]."""
        if not self._mixup:
            return np.ones((count, 1), np.float32)
        random = np.random.default_rng((self._seed, self.epoch, index))
        return random.beta(self._mixup, self._mixup, (count, 1)).astype(np.float32)


def spread(pixels: Pixels, most: int) -> Pixels:
    """Every n-th image, at most `most` of them."""
    return pixels[:: -(-len(pixels) // most)]


def _neighbours(values: Floats) -> Floats:
    """Exchange the values of each pair: (n, 1) -> (n, 1)."""
    return values.reshape(-1, 2, 1)[:, ::-1].reshape(-1, 1)

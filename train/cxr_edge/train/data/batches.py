"""Batches of labelled radiographs for Keras on any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.run import Floats
from cxr_edge.train.data.halves import join, middle
from cxr_edge.train.data.masks import LungMasks

#: Weight of a radiograph joined of a pneumonia and a normal half in the loss of the decision. It is low, because the
#: pneumonia may have been in the half that is gone.
UNSURE_WEIGHT = 0.3


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
    halves
        Share of the radiographs with a mask that lose one half, left or right, to another such radiograph. The result
        is a pneumonia if one of the halves is, and evidence may lie in that half only. Both halves often have the same
        class, so the seam says nothing. 0 joins none.
    mixup
        Parameter of the Beta distribution from which each image's share in the mixture with its neighbour is drawn
        (Zhang et al. 2018); 0 mixes none. `fit.augment.recipe.PairMix` does the mixing. The batch size must be even.

    Notes
    -----
    An item has pixels (n, H, W, 1) uint8, with mixup also shares (n, 1); targets (n, 1) float32; with class weights
    also weights (n,) float32. With masks, pixels are (n, H, W, 2), and (n, 1) float32 in {0, 1} says which radiographs
    have a mask. With `halves`, channel 2 has the lungs where evidence may lie, and there are always weights.
    """

    def __init__(
        self, pixels: Pixels, labels: npt.NDArray[np.integer[Any]], batch_size: int, seed: int,
        *, multiple_of: int = 1, class_weights: bool = False, mixup: float | None = None,
        masks: LungMasks | None = None, halves: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._pixels, self._masks = pixels, masks
        self._labels = labels.astype(np.float32)[:, np.newaxis]
        self._weights = (len(labels) / (2 * np.bincount(labels)[labels])).astype(np.float32) if class_weights else None
        self._batch_size, self._multiple_of, self._seed, self._mixup = batch_size, multiple_of, seed, mixup
        self._halves = halves
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
            pixels = np.concatenate([pixels, self._masks.pixels[rows]], axis=-1)
            if self._halves is not None:
                pixels, targets, sure = self._join(index, rows, pixels)
                weights = (sure * weights[0] if weights else sure,)
            return (pixels, known), targets, *weights
        if self._mixup is None:
            return pixels, targets, *weights
        shares = self._shares(index, len(rows))
        mixed = (shares * each + (1 - shares) * _neighbours(each) for each in (targets, *(w[:, None] for w in weights)))
        targets, *weights = mixed  # type: ignore[assignment]
        return (pixels, shares), targets, *(w[:, 0] for w in weights)

    def _join(self, index: int, rows: npt.NDArray[np.intp], pixels: Pixels) -> tuple[Pixels, Floats, Floats]:
        """Replace halves of some radiographs; -> (n, H, W, 3) uint8, targets (n, 1), weights (n,)."""
        assert self._masks is not None and self._halves is not None
        random = np.random.default_rng((self._seed, self.epoch, index))
        chosen = (random.random(len(rows)) < self._halves) & self._masks.known[rows]
        with_mask = np.flatnonzero(self._masks.known)
        partners = random.choice(with_mask, len(rows)) if with_mask.size else rows  # without any mask, none is chosen
        keep_left = random.random(len(rows)) < 0.5
        pixels = np.concatenate([pixels, pixels[..., 1:]], axis=-1)
        targets, weights = self._labels[rows].copy(), np.ones(len(rows), np.float32)
        for n in np.flatnonzero(chosen):
            row, partner = rows[n], partners[n]
            mask = self._masks.pixels[partner]
            other = np.concatenate([self._pixels[partner], mask, mask], axis=-1)
            own_middle, new_middle = (middle(self._masks.pixels[each, ..., 0] > 0) for each in (row, partner))
            kept = (np.arange(pixels.shape[2]) < own_middle) == keep_left[n]
            pixels[n] = join(pixels[n], other, kept, own_middle - new_middle)
            own, new = self._labels[row, 0], self._labels[partner, 0]
            if own != new:
                targets[n], weights[n] = 1, UNSURE_WEIGHT
                pixels[n, :, kept != (own == 1), 2] = 0
        return pixels, targets, weights

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

"""A labelled data set as batches for Keras, on any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt


class RadiographBatches(keras.utils.PyDataset):
    """Shuffled batches of radiographs held in memory (50 KB each).

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255], from `cxr_edge.runtime.dataset.read_pixels`.
    labels
        (N,) of 0 and 1.
    seed
        Of the order, which changes with each epoch.

    Notes
    -----
    Item: (n, H, W, 1) uint8 and (n, 1) float32 with n ≤ `batch_size`.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self._pixels = pixels
        self._labels = labels.astype(np.float32)[:, np.newaxis]
        self._batch_size = batch_size
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(labels))

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._pixels[rows], self._labels[rows]

    def on_epoch_end(self) -> None:
        """Shuffle anew."""
        self._order = self._random.permutation(len(self._order))

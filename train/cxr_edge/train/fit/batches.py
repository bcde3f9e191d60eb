"""A labelled data set as batches for Keras, on any backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class RadiographBatches(keras.utils.PyDataset):
    """Shuffled batches of radiographs held in memory (50 KB each).

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255], from `cxr_edge.common.dataset.read_pixels`.
    labels
        (N,) of 0 and 1.
    seed
        Of the order, which changes with each epoch and depends on nothing else.
    multiple_of
        Every batch is a multiple of this; the last one is filled up with images that come first. For replicas, each of
        which takes its share.
    class_weights
        Weigh the images so that both classes count the same: n / (2·n_class).
    mixup
        Of the Beta distribution from which each image's share of its mixture with its neighbour is drawn (Zhang et al.
        2018); 0 mixes none. The network mixes, see `PairMix`; needs batches of even size.

    Notes
    -----
    Item: (n, H, W, 1) uint8, with mixup also the shares (n, 1); (n, 1) float32 targets; with weights (n,) float32.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]], batch_size: int, seed: int,
        *, multiple_of: int = 1, class_weights: bool = False, mixup: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._pixels = pixels
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
        if self._mixup is None:
            return pixels, targets, *weights
        shares = self._shares(index, len(rows))
        mixed = (shares * each + (1 - shares) * _neighbours(each) for each in (targets, *(w[:, None] for w in weights)))
        targets, *weights = mixed  # type: ignore[assignment]
        return (pixels, shares), targets, *(w[:, 0] for w in weights)

    def on_epoch_begin(self) -> None:
        """Shuffle, as this epoch and the seed say: a resumed run sees the same."""
        order = np.random.default_rng((self._seed, self.epoch)).permutation(len(self._labels))
        self._order = np.resize(order, -(-len(order) // self._multiple_of) * self._multiple_of)

    def on_epoch_end(self) -> None:
        """Count."""
        self.epoch += 1

    def _shares(self, index: int, count: int) -> Floats:
        """(n, 1) in [0, 1]: of each image in its mixture."""
        if not self._mixup:
            return np.ones((count, 1), np.float32)
        random = np.random.default_rng((self._seed, self.epoch, index))
        return random.beta(self._mixup, self._mixup, (count, 1)).astype(np.float32)


def _neighbours(values: Floats) -> Floats:
    """(n, 1) with each pair exchanged."""
    return values.reshape(-1, 2, 1)[:, ::-1].reshape(-1, 1)


@keras.saving.register_keras_serializable("cxr_edge")
class PairMix(keras.layers.Layer):
    """Mix each image of a batch with its neighbour, 0 with 1, 2 with 3 (mixup, Zhang et al. 2018).

    Neighbours stay on one replica when a batch is parted among several.
    """

    def call(self, images: Any, shares: Any, training: bool = False) -> Any:
        """Images (N, H, W, C), N even, and the share of each in [0, 1], (N, 1) -> (N, H, W, C)."""
        if not training:
            return images
        from keras import ops

        height, width, channels = images.shape[1:]
        pairs = ops.reshape(images, (-1, 2, height, width, channels))
        neighbours = ops.reshape(ops.flip(pairs, axis=1), (-1, height, width, channels))
        shares = ops.reshape(shares, (-1, 1, 1, 1))
        return shares * images + (1 - shares) * neighbours

"""The base of a random change, and on which images and channels it acts."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class RandomChange(layers.Layer):
    """A random change, drawn separately for each image and applied only in training.

    Subclasses implement `_change`.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same shape and range."""
        return self._change(images) if training else images

    def _change(self, images: Any) -> Any:
        """(N, H, W, C) in [0, 255] -> the same shape and range; each image is changed by its own draw."""
        raise NotImplementedError

    def _draw(self, shape: tuple[Any, ...], low: Any = 0.0, high: Any = 1.0) -> Any:
        """Draw uniform random numbers."""
        return keras.random.uniform(shape, low, high, seed=self._generator)


class Sometimes(RandomChange):
    """Apply another layer to a random share of the images.

    Parameters
    ----------
    other
        Layer of images -> images of the same shape.
    share
        Probability that an image is changed, in [0, 1].
    """

    def __init__(self, other: layers.Layer, share: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._other, self._share = other, share

    def build(self, shape: Any) -> None:
        """Create the state of the other layer."""
        self._other.build(shape)
        super().build(shape)

    def _change(self, images: Any) -> Any:
        drawn = self._draw((ops.shape(images)[0], 1, 1, 1))
        return ops.where(drawn < self._share, self._other(images, training=True), images)


class OnRadiograph(layers.Layer):
    """Apply another layer to the first channel, the radiograph, and leave the masks in the other channels alone.

    Parameters
    ----------
    change
        Layer of images -> images of the same shape.
    """

    def __init__(self, change: layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._change = change

    def build(self, shape: Any) -> None:
        """Create the state of the other layer."""
        self._change.build((*shape[:-1], 1))
        super().build(shape)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same shape and range."""
        if images.shape[-1] == 1:
            return self._change(images, training=training)
        changed = self._change(images[..., :1], training=training)
        return ops.concatenate([changed, ops.cast(images[..., 1:], changed.dtype)], axis=-1)

"""Changes of tone, contrast, sharpness and noise."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from cxr_edge.train.fit.augment.change import RandomChange


class RandomKernel(RandomChange):
    """Enlarge each image and reduce it again with a random pair of kernels: other software that resized it.

    The same radiograph, resized by area averaging or by an antialiased bicubic kernel, differs in its finest structure
    only, and yet the probability of a network that had seen one kernel moved by up to 0.34.

    Parameters
    ----------
    factors
        Magnifications between the two steps; each image draws one of them.
    """

    def __init__(self, factors: tuple[float, ...] = (0.6, 0.8, 1.5, 2.0), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._factors = tuple(factors)

    def _change(self, images: Any) -> Any:
        _, height, width, _ = ops.shape(images)
        versions = []
        for factor in self._factors:
            between = (round(factor * height), round(factor * width))
            to, back = ("bicubic", "bilinear") if factor > 1 else ("bilinear", "bicubic")
            resized = ops.image.resize(images, between, interpolation=to, antialias=factor < 1)
            versions.append(ops.image.resize(resized, (height, width), interpolation=back, antialias=False))
        chosen = ops.floor(self._draw((ops.shape(images)[0], 1, 1, 1), 0, len(versions)))
        return ops.clip(sum(ops.where(chosen == n, each, 0.0) for n, each in enumerate(versions)), 0, 255)


class RandomEqualise(RandomChange):
    """Blend each image with its histogram-equalised version in a random share: another vendor's tone curve.

    Keras' own `Equalization` uses one histogram for a whole batch.

    Parameters
    ----------
    levels
        Number of gray levels at which the distribution is computed; it is linear between them.
    """

    def __init__(self, levels: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._levels = levels

    def _change(self, images: Any) -> Any:
        shape = ops.shape(images)
        gray = ops.reshape(images, (shape[0], -1)) * ((self._levels - 1) / 255)
        # Equalisation maps a level to the share of pixels up to it; black borders stay black.
        below = ops.stack([ops.mean(ops.cast(gray <= n, "float32"), axis=1) for n in range(self._levels)], axis=1)
        below = (below - below[:, :1]) / (1 + 1e-6 - below[:, :1])
        level = ops.clip(ops.cast(gray, "int32"), 0, self._levels - 2)
        part = gray - ops.cast(level, gray.dtype)
        low, high = (ops.take_along_axis(below, level + step, axis=1) for step in (0, 1))
        equalised = ops.reshape(255.0 * (low + part * (high - low)), shape)
        return images + self._draw((shape[0], 1, 1, 1)) * (equalised - images)


class RandomLocalEqualise(RandomChange):
    """Equalise each image locally with a random limit of contrast, as another vendor does (CLAHE, Zuiderveld 1994).

    Parameters
    ----------
    limits
        Range of the clip limit, drawn log-uniformly: the largest share of a tile's pixels in one interval of gray
        levels, as a multiple of its mean share.
    tiles
        Number of tiles along each side.
    intervals
        Number of intervals of gray levels. OpenCV has 256.
    """

    def __init__(self, limits: tuple[float, float], tiles: int = 8, intervals: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._limits, self._tiles, self._intervals = tuple(limits), tiles, intervals

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)
        gray = images * (self._intervals / 255)

        def share_up_to(level: int) -> Any:
            return _tile_means(ops.cast(gray <= level, images.dtype), self._tiles)

        below = ops.concatenate([share_up_to(level) for level in range(1, self._intervals + 1)], axis=-1)
        shares = ops.concatenate([below[..., :1], below[..., 1:] - below[..., :-1]], axis=-1)
        limit = ops.exp(self._draw((count, 1, 1, 1), *map(math.log, self._limits))) / self._intervals
        clipped = ops.minimum(shares, limit)
        clipped = clipped + (1 - ops.sum(clipped, axis=-1, keepdims=True)) / self._intervals
        # Each pixel takes the value of its level, interpolated between levels and between the four nearest tiles.
        curves = 255 * ops.cumsum(clipped, axis=-1)
        values = (
            ops.relu(1 - ops.abs(gray - level))
            * ops.image.resize(curves[..., level - 1 : level], (height, width), interpolation="bilinear")
            for level in range(1, self._intervals + 1)
        )
        return sum(values)


class RandomGamma(RandomChange):
    """Raise each image's brightness, as a share of 255, to a random power: another film or detector curve.

    Parameters
    ----------
    low, high
        Range of the power, drawn log-uniformly.
    """

    def __init__(self, low: float, high: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._low, self._high = low, high

    def _change(self, images: Any) -> Any:
        low, high = (ops.log(ops.cast(value, self.compute_dtype)) for value in (self._low, self._high))
        power = ops.exp(self._draw((ops.shape(images)[0], 1, 1, 1), low, high))
        return 255.0 * ops.power(ops.clip(images / 255.0, 1e-6, 1.0), power)  # at 0 a power has no gradient


class RandomNoise(RandomChange):
    """Add normal noise of random strength to each image: another exposure or detector.

    Parameters
    ----------
    highest
        Largest standard deviation (gray levels), drawn uniformly from 0.
    """

    def __init__(self, highest: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._highest = highest

    def _change(self, images: Any) -> Any:
        strength = self._draw((ops.shape(images)[0], 1, 1, 1), 0, self._highest)
        noise = keras.random.normal(ops.shape(images), seed=self._generator)
        return ops.clip(images + strength * noise, 0, 255)


class RandomBands(RandomChange):
    """Amplify or reduce each image's contrast by scale: another detector, enhancement or resizing kernel.

    The image is divided as in a Laplacian pyramid (Burt and Adelson 1983): its mean, shading above an eighth of the
    width (coarse), structure down to 3 pixels (middle), and the rest (fine). Local enhancement such as CLAHE reduces
    coarse and amplifies middle contrast. Blur reduces fine contrast; nearest-neighbour resizing and sharpening amplify
    it.

    Parameters
    ----------
    coarse, middle, fine
        Range of each band's gain, drawn log-uniformly.
    """

    def __init__(
        self, coarse: tuple[float, float], middle: tuple[float, float], fine: tuple[float, float], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._gains = {"coarse": tuple(coarse), "middle": tuple(middle), "fine": tuple(fine)}

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        shading = ops.image.resize(_tile_means(images, 8), (height, width), interpolation="bilinear")
        smooth = ops.average_pool(images, 3, strides=1, padding="same")
        bands = (shading - mean, smooth - shading, images - smooth)
        for band, (low, high) in zip(bands, self._gains.values(), strict=True):
            mean = mean + ops.exp(self._draw((count, 1, 1, 1), math.log(low), math.log(high))) * band
        return ops.clip(mean, 0, 255)


def _tile_means(images: Any, tiles: int) -> Any:
    """Mean of each tile: (N, H, W, C) -> (N, tiles, tiles, C)."""
    _, height, width, _ = ops.shape(images)
    cell = (height // tiles, width // tiles)
    return ops.average_pool(images, cell, strides=cell, padding="valid")  # Keras' default strides fail on JAX

"""Augmentation: variation between X-ray rooms, but not between sick and healthy patients."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

#: Share of the images to which each change is applied. When every change was applied to every image, the network had
#: never seen original images: their logits were lower by 2 to 3, and no threshold suited both.
SHARE = 0.5


def augmentation(seed: int) -> keras.Sequential:
    """Random equalisation, position, frame, tone curve, exposure, contrast by scale and noise.

    Each is applied to `SHARE` of the images. There is no flip, because the heart is on the left.

    Returns
    -------
    (N, H, W, 1) in [0, 255] -> the same shape and range, float32; the identity outside training.
    """
    changes = (
        RandomEqualise(seed=seed),
        RandomAffine(degrees=14, shift=0.1, zoom=(0.8, 1.4), stretch=1.2, seed=seed + 1),
        RandomFrame(0.12, seed=seed + 2),
        RandomGamma(0.6, 1.6, seed=seed + 3),
        layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 4),
        RandomBands(coarse=(0.5, 1.4), middle=(0.6, 2.2), fine=(0.2, 2.5), seed=seed + 5),
        RandomNoise(15.0, seed=seed + 6),
    )
    first = seed + len(changes)
    return keras.Sequential(
        [Sometimes(change, SHARE, seed=first + row) for row, change in enumerate(changes)], name="augmentation"
    )


def unchanged() -> keras.Sequential:
    """No augmentation, for few and similar images such as phantoms."""
    return keras.Sequential([layers.Identity()], name="augmentation")


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


class RandomFrame(RandomChange):
    """Cover a strip of random width at each of the four sides with one random gray level: another collimation.

    Side markers, collimation and film edges differ by class in most collections. A network that cannot rely on them
    must look at the lungs. This is random erasing (Zhong et al. 2020) limited to the border.

    Parameters
    ----------
    widest
        Largest width of a strip, as a share of height or width, drawn uniformly from 0.
    """

    def __init__(self, widest: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._widest = widest

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)

        def inside(size: int) -> Any:
            place = (ops.arange(size, dtype="float32") + 0.5) / size
            ends = self._draw((2, count, 1), 0, self._widest)
            return ops.logical_and(place >= ends[0], place <= 1 - ends[1])

        kept = ops.logical_and(inside(height)[:, :, None, None], inside(width)[:, None, :, None])
        gray = self._draw((count, 1, 1, 1), 0, 255)
        return ops.where(kept, images, ops.cast(gray, images.dtype))


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


class RandomAffine(RandomChange):
    """Rotate, shift, zoom and stretch each image about its centre in one interpolation; the surroundings become black.

    Three successive layers would interpolate three times, and the network would be trained on images that are softer
    than those it is used on.

    Parameters
    ----------
    degrees
        Largest rotation, either way.
    shift
        Largest translation, either way, as a share of height and width.
    zoom
        Range of magnification, drawn log-uniformly; borders are cropped above 1.
    stretch
        Largest ratio of the magnification of the width to that of the height, either way.
    """

    def __init__(self, degrees: float, shift: float, zoom: tuple[float, float], stretch: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._degrees, self._shift, self._zoom, self._stretch = degrees, shift, tuple(zoom), stretch

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)

        def draw(low: float, high: float) -> Any:
            return self._draw((count,), low, high)

        angle = draw(-math.radians(self._degrees), math.radians(self._degrees))
        zoom = ops.exp(draw(*map(math.log, self._zoom)))
        stretch = ops.exp(draw(-math.log(self._stretch) / 2, math.log(self._stretch) / 2))
        right, down = draw(-self._shift, self._shift) * width, draw(-self._shift, self._shift) * height
        # The source of each output pixel: centre -> rotation -> scale -> centre.
        a, b = ops.cos(angle) / (zoom * stretch), -ops.sin(angle) / (zoom * stretch)
        c, d = ops.sin(angle) * stretch / zoom, ops.cos(angle) * stretch / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        none = ops.zeros_like(angle)
        matrix = [a, b, x - a * x - b * y + right, c, d, y - c * x - d * y + down, none, none]
        return ops.image.affine_transform(images, ops.stack(matrix, axis=1), fill_mode="constant", fill_value=0.0)


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
        cell = (height // 8, width // 8)
        cells = ops.average_pool(images, cell, strides=cell, padding="valid")  # Keras' default strides fail on JAX
        shading = ops.image.resize(cells, (height, width), interpolation="bilinear")
        smooth = ops.average_pool(images, 3, strides=1, padding="same")
        bands = (shading - mean, smooth - shading, images - smooth)
        for band, (low, high) in zip(bands, self._gains.values(), strict=True):
            mean = mean + ops.exp(self._draw((count, 1, 1, 1), math.log(low), math.log(high))) * band
        return ops.clip(mean, 0, 255)


class PairMix(layers.Layer):
    """Mix each image of a batch with its neighbour, 0 with 1, 2 with 3 (mixup, Zhang et al. 2018).

    Neighbours stay on one replica when a batch is divided among several.
    """

    def call(self, images: Any, shares: Any, training: bool = False) -> Any:
        """Images (N, H, W, C), N even, and their shares (N, 1) in [0, 1] -> (N, H, W, C)."""
        if not training:
            return images
        height, width, channels = images.shape[1:]
        pairs = ops.reshape(images, (-1, 2, height, width, channels))
        neighbours = ops.reshape(ops.flip(pairs, axis=1), (-1, height, width, channels))
        shares = ops.reshape(shares, (-1, 1, 1, 1))
        return shares * images + (1 - shares) * neighbours

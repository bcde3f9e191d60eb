"""Augmentation: variation between X-ray rooms, but not between sick and healthy patients."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

#: Share of the images to which each change is applied. When every change was applied to every image, the network had
#: never seen original images: their logits were lower by 2 to 3, and no threshold suited both.
SHARE = 0.5


def augmentation(seed: int, crop_area: float = 1.0) -> keras.Sequential:
    """Random equalisation, crop, position, frame, resizing kernel, tone curve, exposure, contrast by scale and noise.

    Each is applied to `SHARE` of the images, local equalisation to half of that. There is no flip, because the heart is
    on the left.

    Parameters
    ----------
    crop_area
        Smallest area of a random crop, as a share of the image; 1 for no crops.

    Returns
    -------
    (N, H, W, C) in [0, 255] -> the same shape and range, float32; the identity outside training. The first channel is
    the radiograph. Further channels are masks: they move with it, and their brightness does not change.
    """
    moves = (
        RandomAffine(degrees=14, shift=0.1, zoom=(0.8, 1.4), stretch=1.2, share=SHARE, crop_area=crop_area, seed=seed),
        Sometimes(RandomFrame(0.12, seed=seed + 1), SHARE, seed=seed + 2),
    )
    tones = (
        RandomKernel(seed=seed + 3),
        RandomGamma(0.6, 1.6, seed=seed + 4),
        layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 5),
        RandomBands(coarse=(0.5, 1.4), middle=(0.6, 2.2), fine=(0.2, 2.5), seed=seed + 6),
        RandomNoise(15.0, seed=seed + 7),
    )
    # Equalisation comes first: the black surroundings of a moved image must not count in its histogram.
    equalised = (
        OnRadiograph(Sometimes(RandomEqualise(seed=seed + 8), SHARE, seed=seed + 9)),
        OnRadiograph(Sometimes(RandomLocalEqualise((1.5, 5.0), seed=seed + 15), SHARE / 2, seed=seed + 16)),
    )
    changed = [OnRadiograph(Sometimes(tone, SHARE, seed=seed + 10 + row)) for row, tone in enumerate(tones)]
    return keras.Sequential([*equalised, *moves, *changed], name="augmentation")


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


class RandomFrame(RandomChange):
    """Cover a strip of random width at each of the four sides with one random gray level: another collimation.

    Nothing of a mask remains under it.

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
        gray = ops.cast(self._draw((count, 1, 1, 1), 0, 255), images.dtype)
        no_mask = ops.zeros((count, 1, 1, images.shape[-1] - 1), images.dtype)
        return ops.where(kept, images, ops.concatenate([gray, no_mask], axis=-1))


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


class RandomAffine(RandomChange):
    """Rotate, shift, zoom, stretch and crop each image in one interpolation; the surroundings become black.

    Successive layers would interpolate several times, and the network would be trained on images that are softer than
    those it is used on.

    Parameters
    ----------
    degrees
        Largest rotation about the centre, either way.
    shift
        Largest translation, either way, as a share of height and width.
    zoom
        Range of magnification, drawn log-uniformly; borders are cropped above 1.
    stretch
        Largest ratio of the magnification of the width to that of the height, either way.
    share
        Probability, in [0, 1], that an image is rotated, shifted, zoomed and stretched; and, independently, that it is
        cropped.
    crop_area
        Smallest area of a crop as a share of the image, drawn uniformly up to 1: random resized crops (Szegedy et al.
        2015). The crop has a random place and aspect ratio (3:4 to 4:3). 1 means no crops.
    """

    def __init__(
        self, degrees: float, shift: float, zoom: tuple[float, float], stretch: float, share: float = 1.0,
        crop_area: float = 1.0, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self._degrees, self._shift, self._zoom, self._stretch = degrees, shift, tuple(zoom), stretch
        self._share, self._crop_area = share, crop_area

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)
        across, along = self._crop(count, width, height)
        (a, b, left), (c, d, top) = self._move(count, width, height)
        none = ops.zeros_like(a)
        # The source of each output pixel: the place in the crop, then the source of that place in the moved image.
        matrix = [
            a * across[0], b * along[0], a * across[1] + b * along[1] + left,
            c * across[0], d * along[0], c * across[1] + d * along[1] + top,
            none, none,
        ]  # fmt: skip
        return ops.image.affine_transform(images, ops.stack(matrix, axis=1), fill_mode="constant", fill_value=0.0)

    def _move(self, count: Any, width: int, height: int) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
        """The matrix that maps output to source pixels, (a, b, left) and (c, d, top); each is (count,)."""
        applied = self._applied(count)

        def draw(low: float, high: float) -> Any:
            return applied * self._draw((count,), low, high)

        angle = draw(-math.radians(self._degrees), math.radians(self._degrees))
        zoom = ops.exp(draw(*map(math.log, self._zoom)))
        stretch = ops.exp(draw(-math.log(self._stretch) / 2, math.log(self._stretch) / 2))
        right, down = draw(-self._shift, self._shift) * width, draw(-self._shift, self._shift) * height
        # Centre -> rotation -> scale -> centre.
        a, b = ops.cos(angle) / (zoom * stretch), -ops.sin(angle) / (zoom * stretch)
        c, d = ops.sin(angle) * stretch / zoom, ops.cos(angle) * stretch / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        return (a, b, x - a * x - b * y + right), (c, d, y - c * x - d * y + down)

    def _crop(self, count: Any, width: int, height: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Scale and start of the crop (pixels), across and along the image; each is (count,)."""
        applied = self._applied(count) if self._crop_area < 1 else ops.zeros((count,))
        area = 1 - applied * self._draw((count,), 0, 1 - self._crop_area)
        aspect = ops.exp(applied * self._draw((count,), math.log(3 / 4) / 2, math.log(4 / 3) / 2))
        shares = ops.minimum(ops.sqrt(area) * aspect, 1), ops.minimum(ops.sqrt(area) / aspect, 1)
        return tuple(
            (share, self._draw((count,)) * (1 - share) * (size - 1))
            for share, size in zip(shares, (width, height), strict=True)
        )  # type: ignore[return-value]

    def _applied(self, count: Any) -> Any:
        """1 for the images to change, 0 for the others: (count,)."""
        return ops.cast(self._draw((count,)) < self._share, "float32")


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

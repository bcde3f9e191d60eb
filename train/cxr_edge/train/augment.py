"""Augmentation: what differs from one X-ray room to the next, never what differs from sick to healthy."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

#: Share of the images that each change is made to. With every change made to every image, images as they are were none
#: that the network had learned: their logits lay lower by 2 to 3, and a threshold held for one or the others.
SHARE = 0.5


def augmentation(seed: int) -> keras.Sequential:
    """Random equalisation, position, frame, tone curve, exposure, contrast by scale, noise: each on half of the images.

    No flip: the heart is on the left.

    Returns
    -------
    (N, H, W, 1) in [0, 255] -> the same shape and range, float32; does nothing outside training.
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
    """No augmentation: a few drawings teach nothing once half of them are strongly changed."""
    return keras.Sequential([layers.Identity()], name="augmentation")


@keras.saving.register_keras_serializable("cxr_edge")
class Sometimes(layers.Layer):
    """Another layer's change, made to a random share of the images.

    Parameters
    ----------
    change
        Layer of images -> images of the same shape, which does nothing outside training.
    share
        Probability that an image is changed, in [0, 1].
    """

    def __init__(self, change: layers.Layer, share: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._change, self._share, self._seed = change, share, seed
        self._generator = keras.random.SeedGenerator(seed)

    def build(self, shape: Any) -> None:
        """Make the other layer's state."""
        self._change.build(shape)
        super().build(shape)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) -> the same."""
        if not training:
            return images
        drawn = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=self._generator)
        return ops.where(drawn < self._share, self._change(images, training=True), images)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        change = keras.saving.serialize_keras_object(self._change)
        return super().get_config() | {"change": change, "share": self._share, "seed": self._seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sometimes:
        """Build from `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config.pop("change")), **config)


@keras.saving.register_keras_serializable("cxr_edge")
class RandomFrame(layers.Layer):
    """Cover a strip of random width at each of the four sides with one random grey: another collimation.

    Side markers, collimation and film edges differ by class in most collections. A network that cannot count on them
    has to look at the lungs. Random erasing (Zhong et al. 2020), but only where no lung is.

    Parameters
    ----------
    widest
        Largest width of a strip, as a share of height or width, drawn uniformly from 0.
    """

    def __init__(self, widest: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._widest, self._seed = widest, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same."""
        if not training:
            return images
        count, height, width, _ = ops.shape(images)

        def inside(size: int) -> Any:
            place = (ops.arange(size, dtype="float32") + 0.5) / size
            ends = keras.random.uniform((2, count, 1), 0, self._widest, seed=self._generator)
            return ops.logical_and(place >= ends[0], place <= 1 - ends[1])

        kept = ops.logical_and(inside(height)[:, :, None, None], inside(width)[:, None, :, None])
        grey = keras.random.uniform((count, 1, 1, 1), 0, 255, seed=self._generator)
        return ops.where(kept, images, ops.cast(grey, images.dtype))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().get_config() | {"widest": self._widest, "seed": self._seed}


@keras.saving.register_keras_serializable("cxr_edge")
class RandomEqualise(layers.Layer):
    """Blend each image with its histogram-equalised self, in a random share: another vendor's tone curve.

    Keras' own `Equalization` takes one histogram for a whole batch.

    Parameters
    ----------
    levels
        At which the distribution of grey is taken; linear between them.
    """

    def __init__(self, levels: int = 32, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._levels, self._seed = levels, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same."""
        if not training:
            return images
        shape = ops.shape(images)
        grey = ops.reshape(images, (shape[0], -1)) * ((self._levels - 1) / 255)
        # What equalisation makes of a level is the share of pixels up to it; black borders stay black.
        below = ops.stack([ops.mean(ops.cast(grey <= n, "float32"), axis=1) for n in range(self._levels)], axis=1)
        below = (below - below[:, :1]) / (1 + 1e-6 - below[:, :1])
        level = ops.clip(ops.cast(grey, "int32"), 0, self._levels - 2)
        part = grey - ops.cast(level, grey.dtype)
        low, high = (ops.take_along_axis(below, level + step, axis=1) for step in (0, 1))
        equalised = ops.reshape(255.0 * (low + part * (high - low)), shape)
        share = keras.random.uniform((shape[0], 1, 1, 1), seed=self._generator)
        return images + share * (equalised - images)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().get_config() | {"levels": self._levels, "seed": self._seed}


@keras.saving.register_keras_serializable("cxr_edge")
class RandomGamma(layers.Layer):
    """Raise each image's brightness, as a share of 255, to a random power: another film or detector curve.

    Parameters
    ----------
    low, high
        Range of the power, drawn log-uniformly.
    """

    def __init__(self, low: float, high: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._low, self._high, self._seed = low, high, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same."""
        if not training:
            return images
        shape = (ops.shape(images)[0], 1, 1, 1)
        low, high = (ops.log(ops.cast(value, self.compute_dtype)) for value in (self._low, self._high))
        power = ops.exp(keras.random.uniform(shape, low, high, self.compute_dtype, self._generator))
        return 255.0 * ops.power(ops.clip(images / 255.0, 1e-6, 1.0), power)  # at 0 a power has no gradient

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().get_config() | {"low": self._low, "high": self._high, "seed": self._seed}


@keras.saving.register_keras_serializable("cxr_edge")
class RandomNoise(layers.Layer):
    """Add normal noise of a random strength to each image: another exposure or detector.

    Parameters
    ----------
    highest
        Largest standard deviation (grey levels), drawn uniformly from 0.
    """

    def __init__(self, highest: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._highest, self._seed = highest, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same."""
        if not training:
            return images
        strength = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), 0, self._highest, seed=self._generator)
        noise = keras.random.normal(ops.shape(images), seed=self._generator)
        return ops.clip(images + strength * noise, 0, 255)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().get_config() | {"highest": self._highest, "seed": self._seed}


@keras.saving.register_keras_serializable("cxr_edge")
class RandomAffine(layers.Layer):
    """Rotate, shift, zoom and stretch each image about its centre, in one interpolation.

    Three layers one after the other would interpolate three times, and the network would learn on images softer than
    any that it meets. Black around.

    Parameters
    ----------
    degrees
        Largest rotation, either way.
    shift
        Largest translation, either way, as a share of height and width.
    zoom
        Range of magnification, drawn log-uniformly; above 1 borders are cropped.
    stretch
        Largest ratio of width's magnification to height's, either way.
    """

    def __init__(
        self, degrees: float, shift: float, zoom: tuple[float, float], stretch: float, seed: int | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self._degrees, self._shift, self._zoom, self._stretch, self._seed = degrees, shift, tuple(zoom), stretch, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) -> the same."""
        if not training:
            return images
        count, height, width, _ = ops.shape(images)

        def draw(low: float, high: float) -> Any:
            return keras.random.uniform((count,), low, high, seed=self._generator)

        angle = draw(-math.radians(self._degrees), math.radians(self._degrees))
        zoom = ops.exp(draw(*map(math.log, self._zoom)))
        stretch = ops.exp(draw(-math.log(self._stretch) / 2, math.log(self._stretch) / 2))
        right, down = draw(-self._shift, self._shift) * width, draw(-self._shift, self._shift) * height
        # Where each output pixel comes from: centre -> rotation -> scale -> centre.
        a, b = ops.cos(angle) / (zoom * stretch), -ops.sin(angle) / (zoom * stretch)
        c, d = ops.sin(angle) * stretch / zoom, ops.cos(angle) * stretch / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        none = ops.zeros_like(angle)
        matrix = [a, b, x - a * x - b * y + right, c, d, y - c * x - d * y + down, none, none]
        return ops.image.affine_transform(images, ops.stack(matrix, axis=1), fill_mode="constant", fill_value=0.0)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"degrees": self._degrees, "shift": self._shift, "zoom": self._zoom, "stretch": self._stretch}
        return super().get_config() | own | {"seed": self._seed}


@keras.saving.register_keras_serializable("cxr_edge")
class RandomBands(layers.Layer):
    """Amplify or damp each image's contrast by scale: another detector, another vendor's enhancement, another resizing.

    The image is parted as a Laplacian pyramid does (Burt and Adelson 1983): its mean, shading above an eighth of the
    width (coarse), structure down to 3 pixels (middle), and the rest (fine). Local enhancement as CLAHE's damps the
    first and amplifies the second, blur damps the last, nearest-neighbour resizing and sharpening amplify it.

    Parameters
    ----------
    coarse, middle, fine
        Range of each band's gain, drawn log-uniformly.
    """

    def __init__(
        self, coarse: tuple[float, float], middle: tuple[float, float], fine: tuple[float, float],
        seed: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self._gains = {"coarse": tuple(coarse), "middle": tuple(middle), "fine": tuple(fine)}
        self._seed = seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """(N, H, W, C) in [0, 255] -> the same."""
        if not training:
            return images
        count, height, width, _ = ops.shape(images)
        mean = ops.mean(images, axis=(1, 2), keepdims=True)
        cell = (height // 8, width // 8)
        cells = ops.average_pool(images, cell, strides=cell, padding="valid")  # Keras' default strides fail on JAX
        shading = ops.image.resize(cells, (height, width), interpolation="bilinear")
        smooth = ops.average_pool(images, 3, strides=1, padding="same")
        bands = (shading - mean, smooth - shading, images - smooth)
        for band, (low, high) in zip(bands, self._gains.values(), strict=True):
            gain = keras.random.uniform((count, 1, 1, 1), math.log(low), math.log(high), seed=self._generator)
            mean = mean + ops.exp(gain) * band
        return ops.clip(mean, 0, 255)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return super().get_config() | self._gains | {"seed": self._seed}

"""Augmentation: what differs from one X-ray room to the next, never what differs from sick to healthy."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


def augmentation(seed: int) -> keras.Sequential:
    """Random position, size, tilt, exposure, contrast, tone curve, sharpness and noise.

    No flip: the heart is on the left.

    Returns
    -------
    (N, H, W, 1) in [0, 255] -> the same shape and range, float32; does nothing outside training.
    """
    return keras.Sequential(
        [
            layers.RandomRotation(0.03, fill_mode="constant", seed=seed),  # ± 11°
            layers.RandomTranslation(0.08, 0.08, fill_mode="constant", seed=seed + 1),
            layers.RandomZoom((-0.25, 0.12), (-0.25, 0.12), fill_mode="constant", seed=seed + 2),  # in: borders cropped
            RandomGamma(0.6, 1.6, seed=seed + 3),
            layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 4),
            layers.RandomContrast(0.35, value_range=(0, 255), seed=seed + 5),
            layers.RandomGaussianBlur(0.5, kernel_size=5, sigma=(0.1, 1.2), value_range=(0, 255), seed=seed + 6),
            RandomNoise(12.0, seed=seed + 7),
        ],
        name="augmentation",
    )


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

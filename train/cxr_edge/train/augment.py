"""Augmentation: what differs from one X-ray room to the next, never what differs from sick to healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def augmentation(seed: int) -> keras.Sequential:
    """Random position, size, tilt, exposure and contrast.

    No flip: the heart is on the left.

    Returns
    -------
    (N, H, W, 1) in [0, 255] -> the same shape and range, float32; does nothing outside training.
    """
    from keras import Sequential, layers

    return Sequential(
        [
            layers.RandomRotation(0.03, fill_mode="constant", seed=seed),  # ± 11°
            layers.RandomTranslation(0.06, 0.06, fill_mode="constant", seed=seed + 1),
            layers.RandomZoom(0.12, 0.12, fill_mode="constant", seed=seed + 2),
            layers.RandomBrightness(0.15, value_range=(0, 255), seed=seed + 3),
            layers.RandomContrast(0.3, value_range=(0, 255), seed=seed + 4),
        ],
        name="augmentation",
    )

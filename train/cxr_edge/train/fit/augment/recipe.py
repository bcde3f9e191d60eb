"""The augmentation: which changes, how strong, and how often."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from cxr_edge.train.fit.augment.change import OnRadiograph, Sometimes
from cxr_edge.train.fit.augment.position import RandomAffine, RandomFrame
from cxr_edge.train.fit.augment.tone import (
    RandomBands,
    RandomEqualise,
    RandomGamma,
    RandomKernel,
    RandomLocalEqualise,
    RandomNoise,
)

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

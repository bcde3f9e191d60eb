"""Options of a training run, and the parts of its data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage, read_pixels
from cxr_edge.train.data.masks import LungMasks, read_masks

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrainConfig:
    """The options of `cxr-edge train`, with their defaults."""

    arch: str = "mobilenetv2"
    weights: str = "imagenet"
    alpha: float = 1.0
    size: int = 224
    border_crop: float = 0.0
    augment: bool = True
    crop_area: float = 1.0
    smooth: bool = False
    lungs: bool = False
    evidence_weight: float = 1.0
    halves: float = 0.0
    epochs: int = 12
    head_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    loss: str = "bce"
    class_weights: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    mixed_precision: bool = False
    strategy: str = "none"
    val_fraction: float = 0.1
    holdout_fraction: float = 0.1
    fold: int = 0
    seed: int = 0

    def build(self, weights: str = "none") -> keras.Model:
        """Build the network, by default with random weights."""
        from cxr_edge.train.fit import models

        return models.build(self.arch, weights, self.size, self.alpha, self.border_crop, self.lungs, self.smooth)


@dataclass(frozen=True)
class Part:
    """One part of the data set in memory: pixels (N, H, W, 1) uint8 in [0, 255], labels (N,) int in {0, 1}.

    `masks` are the lungs of its radiographs, or None if the training uses no masks.
    """

    images: Sequence[LabelledImage]
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    masks: LungMasks | None = None

    @classmethod
    def read(cls, images: Sequence[LabelledImage], size: int, masks: Mapping[str, Path] | None = None) -> Part:
        """Read the images, and their masks, at the network's input size; raises DataError if one cannot be read."""
        labels = np.array([image.label for image in images], np.int64)
        lungs = None if masks is None else read_masks(masks, images, size)
        return cls(images, read_pixels(images, size, size), labels, lungs)

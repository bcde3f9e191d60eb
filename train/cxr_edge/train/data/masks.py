"""Lung masks of radiographs: finding, reading and checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES, LabelledImage, Pixels, fingerprint
from cxr_edge.runtime.errors import DataError, ImageError
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.imaging.image import read_image

#: A lung pixel of a mask file is above this gray level.
LUNG = 127
#: Range of the share of an image that the lungs can cover. Measured on 3,468 masks of children: 0.14 to 0.67.
COVERED = (0.02, 0.8)


@dataclass(frozen=True)
class LungMasks:
    """The lung masks of N radiographs.

    Attributes
    ----------
    pixels
        (N, H, W, 1) uint8: 255 in the lungs, 0 elsewhere and where there is no mask.
    known
        (N,) bool: whether the radiograph has a mask.
    """

    pixels: Pixels
    known: npt.NDArray[np.bool_]


def find_masks(folder: Path, images: Sequence[LabelledImage]) -> dict[str, Path]:
    """Find the masks of a data set: `CLASS/stem` of a radiograph -> `FOLDER/CLASS/stem.png`.

    Raises
    ------
    DataError
        If the folder has no masks, a class has none, or a mask has no radiograph of the same name.
    """
    masks = {f"{name}/{path.stem}": path for name in CLASSES for path in find_images(folder / name)}
    if not masks:
        raise DataError(
            f"{folder}: found no lung masks, expected {folder}/{{{','.join(CLASSES)}}}/NAME.png; name "
            "the folder of the masks with --masks"
        )
    known = {_key(image) for image in images}
    strange = [path for key, path in masks.items() if key not in known]
    if strange:
        raise DataError(
            f"{strange[0]}: found no radiograph of this class and name in the data set, expected one for each of the "
            f"{len(masks)} masks ({len(strange)} have none); name the folder of masks of this data set with --masks, "
            "or remove these files"
        )
    for name in CLASSES:
        if not any(key.startswith(f"{name}/") for key in masks):
            raise DataError(
                f"{folder / name}: found no masks, expected {folder}/{{{','.join(CLASSES)}}}/NAME.png; masks of one "
                "class only would tell the network the class, so add masks of both classes or leave --masks out"
            )
    return masks


def mask_facts(masks: Mapping[str, Path]) -> dict[str, Any]:
    """The entry `masks` of `run.json`."""
    found = [LabelledImage(path, CLASSES.index(key.split("/")[0])) for key, path in masks.items()]
    return {"images": len(found), "fingerprint": fingerprint(found)}


def read_masks(masks: Mapping[str, Path], images: Sequence[LabelledImage], size: int) -> LungMasks:
    """Read the masks of these radiographs at the network's input size.

    Raises
    ------
    DataError
        If a mask cannot be read, has another size than its radiograph, or cannot be a lung mask.
    """
    pixels = np.zeros((len(images), size, size, 1), np.uint8)
    known = np.array([_key(image) in masks for image in images], bool)
    for row in np.flatnonzero(known).tolist():
        pixels[row, :, :, 0] = _read(masks[_key(images[row])], images[row].path, size)
    return LungMasks(pixels, known)


def _read(path: Path, radiograph: Path, size: int) -> npt.NDArray[np.uint8]:
    """The lungs of one mask file, (size, size) uint8, 0 or 255."""
    try:
        mask = read_image(path)
    except ImageError as error:
        raise DataError(f"{error}; repair or remove this mask") from error
    # A mask of the network's input size fits any radiograph that is resized to it.
    if mask.shape != (size, size) and mask.shape != read_image(radiograph).shape:
        raise DataError(
            f"{path}: found a mask of {mask.shape[1]}×{mask.shape[0]} pixels, expected the size of {radiograph.name} "
            f"or {size}×{size}; draw it again on this radiograph, or remove it"
        )
    lungs = np.where(mask > LUNG, 255, 0).astype(np.uint8)
    covered = float(lungs.mean()) / 255
    if not COVERED[0] <= covered <= COVERED[1]:
        raise DataError(
            f"{path}: found lungs on {covered:.0%} of the image, expected {COVERED[0]:.0%} to {COVERED[1]:.0%}; a lung "
            "is white in a mask, the rest is black; repair or remove it"
        )
    resized = cv2.resize(lungs, (size, size), interpolation=cv2.INTER_AREA)
    return np.where(resized > LUNG, 255, 0).astype(np.uint8)


def _key(image: LabelledImage) -> str:
    return f"{image.path.parent.name}/{image.path.stem}"

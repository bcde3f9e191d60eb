"""Reading a folder of labelled radiographs in the Kaggle layout.

The layout is `{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, or one split of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import DataError, ImageError
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.imaging.preprocess import read_inputs

CLASSES = ("NORMAL", "PNEUMONIA")
SPLITS = ("train", "val", "test")
#: (N, H, W, 1) uint8 in [0, 255].
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")
#: Bytes of each hash of `contents`.
HASH_BYTES = 5


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its class: 0 normal, 1 pneumonia."""

    path: Path
    label: int

    @property
    def key(self) -> str:
        """`CLASS/name`, by which a run names its held-out images. It does not depend on the place of the data set."""
        return f"{self.path.parent.name}/{self.path.name}"


def read_dataset(data: Path, splits: Collection[str] = SPLITS) -> list[LabelledImage]:
    """List the images of a data set, sorted by split, class and name.

    Parameters
    ----------
    data
        The data set, or one split of it.
    splits
        Splits to read if `data` has several; missing ones are skipped.

    Raises
    ------
    DataError
        If the layout is wrong or a class is empty.
    """
    folders = [data] if _is_split(data) else [data / split for split in SPLITS if split in splits]
    folders = [folder for folder in folders if _is_split(folder)]
    if not folders:
        raise DataError(
            f"{data}: no radiographs in the Kaggle layout; expected {data}/train/NORMAL/*.jpeg and "
            f"{data}/train/PNEUMONIA/*.jpeg (or the two class folders themselves)"
        )
    images = []
    for folder in folders:
        for label, name in enumerate(CLASSES):
            found = find_images(folder / name)
            if not found:
                raise DataError(f"{folder / name}: no image files; both classes need radiographs")
            images += [LabelledImage(path, label) for path in found]
    return images


def read_pixels(images: Iterable[LabelledImage], height: int = 224, width: int = 224) -> Pixels:
    """Decode and preprocess a data set: (N, height, width, 1) uint8 in [0, 255].

    Raises
    ------
    DataError
        If any file cannot be read; the message names the first ones.
    """
    images = list(images)
    pixels = np.empty((len(images), height, width, 1), np.uint8)
    broken = []
    for row, entry in enumerate(read_inputs([image.path for image in images], height, width)):
        if isinstance(entry, ImageError):
            broken.append(str(entry))
        else:
            pixels[row] = entry
    if broken:
        listed = "\n  ".join(broken[:5])
        raise DataError(f"{len(broken)} of {len(images)} images cannot be read; repair or remove them:\n  {listed}")
    return pixels


def evenly(images: Sequence[T], count: int) -> list[T]:
    """At most `count` of the images, evenly spaced in their order, so that every split and class is among them."""
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[row] for row in rows]


def fingerprint(images: Iterable[LabelledImage]) -> str:
    """sha256 of class, name and content of all images, in order."""
    total = hashlib.sha256()
    for image in images:
        total.update(f"{CLASSES[image.label]}/{image.path.name}\n".encode())
        total.update(hashlib.sha256(image.path.read_bytes()).digest())
    return total.hexdigest()


def contents(images: Iterable[LabelledImage]) -> str:
    """The first five bytes of the sha256 of each file, sorted, in base64: 7 characters for an image.

    `has_content` finds an image in it. Of 1,000 other images and 5,000 of these, one is found by chance in 200,000 data
    sets.
    """
    found = {hashlib.sha256(image.path.read_bytes()).digest()[:HASH_BYTES] for image in images}
    return base64.b64encode(b"".join(sorted(found))).decode()


def has_content(text: str, digests: Iterable[bytes]) -> list[bool]:
    """Whether each sha256 is one of the images of `contents`.

    Raises
    ------
    ValueError
        If the text is not made by `contents`.
    """
    known = base64.b64decode(text, validate=True)
    if len(known) % HASH_BYTES:
        raise ValueError(f"{len(known)} bytes are no hashes of {HASH_BYTES}")
    all_known = {known[start : start + HASH_BYTES] for start in range(0, len(known), HASH_BYTES)}
    return [digest[:HASH_BYTES] in all_known for digest in digests]


def _is_split(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in CLASSES)

"""Real images that are unlike the training set, such as radiographs of adults, to fit `novelty` on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_edge.common.dataset import LabelledImage, Pixels, read_pixels
from cxr_edge.runtime.errors import DataError
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.prediction import UNKNOWN
from cxr_edge.train.data.outliers import KINDS

#: Smallest number of images of a kind. A direction that is fitted to fewer does not hold for others.
FEWEST = 20
Files = dict[str, list[Path]]


@dataclass(frozen=True)
class Strangers:
    """Images by kind, (N, H, W, 1) uint8 in [0, 255], and the sha256 of their kinds, names and contents."""

    pixels: Mapping[str, Pixels]
    fingerprint: str

    @classmethod
    def read(cls, folder: Path, size: int, data: Sequence[LabelledImage]) -> Strangers:
        """Read a folder that has one subfolder of images for each kind, whose name is that of the kind.

        Parameters
        ----------
        size
            Height and width of the network's input (pixels).
        data
            The labelled radiographs, none of which may be among the strangers.

        Raises
        ------
        DataError
            If there is no subfolder, a kind has fewer than `FEWEST` images or a reserved name, an image cannot be read,
            or an image is also in the data set.
        """
        files = _find(folder)
        hashes = {path: _hash(path) for paths in files.values() for path in paths}
        _refuse_radiographs(hashes, data)
        # The label is not used: `read_pixels` reads the path alone.
        pixels = {
            kind: read_pixels([LabelledImage(path, 0) for path in paths], size, size) for kind, paths in files.items()
        }
        total = hashlib.sha256()
        for kind, paths in files.items():
            for path in paths:
                total.update(f"{kind}/{path.name}\n".encode() + hashes[path])
        return cls(pixels, total.hexdigest())

    def facts(self) -> dict[str, Any]:
        """The entry `strangers` of `run.json`."""
        return {"kinds": {kind: len(each) for kind, each in self.pixels.items()}, "fingerprint": self.fingerprint}


def _find(folder: Path) -> Files:
    """Kind -> its files, in order of the names."""
    expected = f"expected a folder for each kind of image, such as {folder}/adult/*.png"
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; {expected}; correct --strangers")
    kinds = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not kinds:
        raise DataError(f"{folder}: found no folder in it; {expected}; move the images of a kind into such a folder")
    files = {}
    for kind in kinds:
        if kind.name in (*KINDS, UNKNOWN):
            raise DataError(f"{kind}: the kind {kind.name!r} is made by cxr-edge; expected another name; rename it")
        files[kind.name] = find_images(kind)
        if len(files[kind.name]) < FEWEST:
            raise DataError(
                f"{kind}: found {len(files[kind.name])} images, expected at least {FEWEST} of a kind; add some, or "
                "remove the folder"
            )
    return files


def _refuse_radiographs(hashes: Mapping[Path, bytes], data: Sequence[LabelledImage]) -> None:
    known = {_hash(image.path): image.path for image in data}
    shared = [path for path, digest in hashes.items() if digest in known]
    if shared:
        raise DataError(
            f"{shared[0]}: the same file as {known[hashes[shared[0]]]} of the data set ({len(shared)} such images); "
            "expected images unlike the data set; remove them from one of the two"
        )


def _hash(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); repair or remove it") from error

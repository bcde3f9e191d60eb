"""The images of a site: what the model says about each of them, their labels, and whether they may be used."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import has_content
from cxr_edge.runtime.bundles.bundle import Manifest
from cxr_edge.runtime.bundles.manifest import CONTENTS
from cxr_edge.runtime.errors import BundleError, CalibrationError, DataError, ImageError
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.predictor import Predictor
from cxr_edge.sites.calibration.fit import Floats, Labels

#: Largest share of images that may be unlike the training set.
MOST_STRANGERS = 0.2
HEADER = ("path", "label")
SHOWN = 5


@dataclass(frozen=True)
class SiteImages:
    """N different images of a site.

    Attributes
    ----------
    log_odds, strange
        (N,) float: logit / temperature, and (N,) bool: whether the image is not in distribution.
    labels
        (N,) int: 0 normal, 1 pneumonia; None without labels.
    fingerprint
        sha256 over the sorted sha256 of the files, with their labels. It holds no names.
    copies
        Number of files that were left out, because their content occurs twice.
    """

    log_odds: Floats
    strange: npt.NDArray[np.bool_]
    labels: Labels | None
    fingerprint: str
    copies: int


def read_site(predictor: Predictor, folder: Path, csv_file: Path | None, tick: Callable[[], None]) -> SiteImages:
    """Read the images below a folder, or those of them that a CSV file labels, and run the model on each.

    Raises
    ------
    DataError
        If there are no images, some cannot be read, the CSV file cannot be used or names other files, or an image is
        also in the training data.
    CalibrationError
        If more than `MOST_STRANGERS` of them are unlike the training set.
    """
    paths = find_images(folder)
    if not paths:
        raise DataError(f"{folder}: found no image files, expected radiographs of the site; name their folder")
    labels = None if csv_file is None else read_labels(csv_file, folder, paths, predictor.manifest.classes)
    paths = paths if labels is None else list(labels)
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}
    _refuse_training_images(predictor.manifest, digests)
    unique = {digest: path for path, digest in reversed(digests.items())}
    if labels is not None:
        _refuse_contradictions(digests, labels)
    kept = sorted(unique.values())
    log_odds, strange = _observe(predictor, kept, tick)
    _refuse_strangers(folder, strange)
    given = None if labels is None else np.array([labels[path] for path in kept], np.int64)
    rows = sorted(digests[path].hex() + ("" if labels is None else f" {labels[path]}") for path in kept)
    total = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return SiteImages(log_odds, strange, given, total, len(paths) - len(kept))


def read_labels(csv_file: Path, folder: Path, images: Sequence[Path], classes: Sequence[str]) -> dict[Path, int]:
    """Read `path,label` rows; paths are relative to the folder, labels are names of classes, or 0 and 1."""
    try:
        with csv_file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header, rows = tuple(next(reader, ())), [row for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{csv_file}: cannot be read as CSV ({error}); save it as UTF-8 with commas") from error
    if header != HEADER:
        raise DataError(f"{csv_file}: found the header {','.join(header)!r}, expected {','.join(HEADER)!r}; correct it")
    known, codes = set(images), {name: code for code, name in enumerate(classes)} | {"0": 0, "1": 1}
    labels: dict[Path, int] = {}
    for number, row in enumerate(rows, 2):
        path = folder / row[0]
        if len(row) != 2 or row[1] not in codes:
            raise DataError(f"{csv_file}: line {number}: found {','.join(row)!r}, expected PATH,{' or '.join(classes)}")
        if path not in known:
            raise DataError(
                f"{csv_file}: line {number}: found {row[0]!r}, which is no image file in {folder}; correct the path "
                "(it is relative to that folder) or remove the line"
            )
        if path in labels:
            raise DataError(f"{csv_file}: line {number}: found {row[0]!r} for the second time; keep one line for it")
        labels[path] = codes[row[1]]
    return labels


def _observe(
    predictor: Predictor, paths: Sequence[Path], tick: Callable[[], None]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    logits, strange, broken = [], [], []
    for result in predictor.predict_many(paths):
        tick()
        if isinstance(result, ImageError):
            broken.append(str(result))
        else:
            logits.append(result.logit)
            strange.append(not result.in_distribution)
    if broken:
        listed = "\n  ".join(broken[:SHOWN])
        raise DataError(f"{len(broken)} of {len(paths)} images cannot be read; repair or remove them:\n  {listed}")
    return np.array(logits) / predictor.manifest.temperature, np.array(strange, bool)


def _refuse_training_images(manifest: Manifest, digests: dict[Path, bytes]) -> None:
    """Refuse images that the network was trained on; their logits are better than those of any site."""
    if (known := training_contents(manifest)) is None:
        return
    try:
        seen = [str(p) for p, found in zip(digests, has_content(known, digests.values()), strict=True) if found]
    except ValueError as error:
        raise BundleError(f"manifest: training.data.{CONTENTS}: not hashes ({error}); export the run again") from error
    if seen:
        listed = "\n  ".join(seen[:SHOWN])
        raise DataError(
            f"{len(seen)} of {len(digests)} images are also in the training data, expected none, because the network "
            f"knows them; remove them:\n  {listed}"
        )


def training_contents(manifest: Manifest) -> str | None:
    """The hashes of the training images in a manifest; None if it was made before they were recorded."""
    data = manifest.training.get("data")
    found = data.get(CONTENTS) if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


def _refuse_contradictions(digests: dict[Path, bytes], labels: dict[Path, int]) -> None:
    first: dict[bytes, Path] = {}
    for path, digest in digests.items():
        other = first.setdefault(digest, path)
        if labels[other] != labels[path]:
            raise DataError(f"{path}: has the same content as {other}, but another label; correct the labels")


def _refuse_strangers(folder: Path, strange: npt.NDArray[np.bool_]) -> None:
    if strange.mean() > MOST_STRANGERS:
        raise CalibrationError(
            f"{folder}: found {strange.mean():.0%} of {len(strange)} images unlike the training set, expected "
            f"{MOST_STRANGERS:.0%} at most: other patients, another projection, or no radiographs. No threshold mends "
            "that; look at them with `cxr-edge predict` (column in_distribution), or train a network for this site"
        )

"""Audit of a data set before training: counts, unreadable files, leaks, duplicates, shortcuts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np

from cxr_edge.common.dataset import CLASSES, SPLITS, LabelledImage, read_dataset
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.preprocess import chunks
from cxr_edge.train.data.duplicates import Bits, equal, perceptual_hash, similar
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.data.shortcuts import Cues, Shortcut, cues_together, measure, single_cues

Progress = Callable[[Iterable["Radiograph | Unreadable"], int], Iterable["Radiograph | Unreadable"]]


@dataclass(frozen=True)
class Origin:
    """The properties of an image that follow from its path; `file` is relative to the data set."""

    path: Path
    file: str
    split: str
    label: str
    patient: str


@dataclass(frozen=True)
class Radiograph:
    """A readable image: width and height in pixels, `bits` is its perceptual hash, (256,) bool."""

    origin: Origin
    sha256: str
    width: int
    height: int
    bits: Bits
    cues: Cues


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read, and the reason."""

    origin: Origin
    error: str


@dataclass(frozen=True)
class Group:
    """Images of one patient, or duplicates of one image."""

    images: tuple[Origin, ...]

    @property
    def across(self) -> tuple[str, ...]:
        """Those of splits, classes and patients in which the images differ."""
        return tuple(
            name
            for name, attribute in (("splits", "split"), ("classes", "label"), ("patients", "patient"))
            if len({getattr(image, attribute) for image in self.images}) > 1
        )

    def to_dict(self) -> dict[str, Any]:
        """Entry of audit.json."""
        return {"files": [image.file for image in self.images], "across": list(self.across)}


@dataclass(frozen=True)
class Audit:
    """The findings. In a data set without faults all lists are empty, except `shortcuts`.

    `leaks` are patients in several splits, `exact` are copies of a file, `near` are pictures that were stored again, of
    which exact copies count once. `together` is the AUC of all shortcuts, None if there are too few patients.
    """

    data: Path
    origins: list[Origin]
    radiographs: list[Radiograph]
    unreadable: list[Unreadable]
    leaks: list[Group]
    exact: list[Group]
    near: list[Group]
    shortcuts: list[Shortcut]
    together: float | None

    @property
    def passed(self) -> bool:
        """Whether all files are readable, and neither a patient nor copies of a file are in two splits."""
        return not (self.unreadable or self.leaks or any("splits" in group.across for group in self.exact))

    def counts(self) -> list[dict[str, Any]]:
        """A row for each split and class: images, patients, unreadable files, and sizes (smallest, median, largest)."""
        return [self._count(*key) for key in dict.fromkeys((origin.split, origin.label) for origin in self.origins)]

    def checks(self) -> list[dict[str, Any]]:
        """A row for each check: its name, the number of findings, and the verdict."""
        duplicates = {"exact duplicates": self.exact, "near duplicates": self.near}
        found = {"unreadable files": len(self.unreadable), "patients in several splits": len(self.leaks)}
        for name, groups in duplicates.items():
            found[name] = len(groups)
            for what in ("splits", "classes", "patients"):
                found[f"{name} across {what}"] = sum(what in group.across for group in groups)
        failing = {"unreadable files", "patients in several splits", "exact duplicates across splits"}
        verdicts = {True: ("ok", "failed"), False: ("ok", "look")}
        return [
            {"check": name, "found": count, "verdict": verdicts[name in failing][count > 0]}
            for name, count in found.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Content of audit.json."""
        return {
            "schema_version": 1,
            "data": str(self.data),
            "passed": self.passed,
            "images": len(self.origins),
            "patients": len({origin.patient for origin in self.origins}),
            "counts": self.counts(),
            "checks": self.checks(),
            "unreadable": [{"file": each.origin.file, "error": each.error} for each in self.unreadable],
            "leaks": [{"patient": group.images[0].patient, **group.to_dict()} for group in self.leaks],
            "exact_duplicates": [group.to_dict() for group in self.exact],
            "near_duplicates": [group.to_dict() for group in self.near],
            "shortcuts": [asdict(shortcut) for shortcut in self.shortcuts],
            "shortcuts_together": {"auc": self.together},
        }

    def _count(self, split: str, label: str) -> dict[str, Any]:
        def within(origin: Origin) -> bool:
            return (origin.split, origin.label) == (split, label)

        members = [origin for origin in self.origins if within(origin)]
        readable = [image for image in self.radiographs if within(image.origin)]
        return {
            "split": split,
            "class": label,
            "images": len(members),
            "patients": len({origin.patient for origin in members}),
            "unreadable": len(members) - len(readable),
            "width": _range([image.width for image in readable]),
            "height": _range([image.height for image in readable]),
        }


def audit(data: Path, progress: Progress = lambda images, total: images) -> Audit:
    """Audit a data set.

    Parameters
    ----------
    data
        Kaggle layout, all splits, or one split of it.
    progress
        Passes the images through, and may show the progress.

    Raises
    ------
    DataError
        If the layout is wrong or a class is empty.
    MissingExtraError
        If an image is DICOM and pydicom is not installed.
    """
    origins = [_origin(data, image) for image in read_dataset(data)]
    read = list(progress(_read_all(origins), len(origins)))
    radiographs = [image for image in read if isinstance(image, Radiograph)]
    exact = equal([image.sha256 for image in radiographs])
    copies = {index for group in exact for index in group[1:]}
    single = [image for index, image in enumerate(radiographs) if index not in copies]
    near = similar(np.array([image.bits for image in single]))
    by_patient = [_group(origins, members) for members in equal([origin.patient for origin in origins])]
    seen = [image.origin for image in radiographs]
    return Audit(
        data,
        origins,
        radiographs,
        [image for image in read if isinstance(image, Unreadable)],
        [group for group in by_patient if "splits" in group.across],
        _worst_first(_group(seen, members) for members in exact),
        _worst_first(_group([image.origin for image in single], members) for members in near),
        *_shortcuts(radiographs),
    )


def _origin(data: Path, image: LabelledImage) -> Origin:
    file = image.path.relative_to(data)
    split = file.parts[0] if file.parts[0] in SPLITS else data.absolute().name
    return Origin(image.path, file.as_posix(), split, CLASSES[image.label], patient_of(image.path))


def _read_all(origins: Sequence[Origin]) -> Iterator[Radiograph | Unreadable]:
    """Read on all cores, in order."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        for chunk in chunks(origins, 64):  # limits the memory of decoded images
            yield from pool.map(_read, chunk)


def _read(origin: Origin) -> Radiograph | Unreadable:
    try:
        gray = read_image(origin.path)
    except ImageError as error:
        return Unreadable(origin, str(error))
    content = origin.path.read_bytes()
    height, width = gray.shape
    sha256 = hashlib.sha256(content).hexdigest()
    return Radiograph(origin, sha256, width, height, perceptual_hash(gray), measure(gray, len(content)))


def _shortcuts(radiographs: Sequence[Radiograph]) -> tuple[list[Shortcut], float | None]:
    labels = [CLASSES.index(image.origin.label) for image in radiographs]
    if len(set(labels)) < len(CLASSES):  # all files of a class are unreadable
        return [], None
    measured = ([image.cues for image in radiographs], labels, [image.origin.patient for image in radiographs])
    return single_cues(*measured), cues_together(*measured)


def _group(origins: Sequence[Origin], members: Iterable[int]) -> Group:
    return Group(tuple(origins[index] for index in members))


def _worst_first(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: -len(group.across))


def _range(values: Sequence[int]) -> dict[str, int] | None:
    return {"min": min(values), "median": round(float(np.median(values))), "max": max(values)} if values else None

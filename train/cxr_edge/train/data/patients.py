"""Who is on which image, and splits that never part a patient's images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage
from cxr_edge.runtime.errors import DataError

# The number alone is wrong in both directions: bacteria and virus count persons apart, and IM and NORMAL2-IM too.
_PERSON = re.compile(r"person(\d+)_(bacteria|virus)", re.IGNORECASE)
_NUMBERED = re.compile(r"(bacteria|virus|IM|NORMAL\d*-IM)-(\d+)")
_NORMAL = re.compile(r"(NORMAL\d+-IM|IM)-(\d+)", re.IGNORECASE)


def patient_of(path: Path) -> str:
    """Key of the patient on an image of *Chest X-Ray Images (Pneumonia)*, by its file name.

    A name of another scheme counts as a patient of its own.

    >>> patient_of(Path("person1000_virus_1681.jpeg")), patient_of(Path("NORMAL2-IM-1427-0001.jpeg"))
    ('virus-1000', 'NORMAL2-IM-1427')
    """
    if match := _PERSON.match(path.name):
        return f"{match[2].lower()}-{int(match[1])}"
    if match := _NORMAL.match(path.name):
        return f"{match[1].upper()}-{int(match[2])}"
    return path.stem


def are_numbered(patients: Sequence[str]) -> bool:
    """Whether all keys are of a scheme of *Chest X-Ray Images (Pneumonia)*, whose numbers have an order."""
    return all(_NUMBERED.fullmatch(patient) for patient in patients)


def positions(images: Sequence[LabelledImage]) -> npt.NDArray[np.float64]:
    """Where each image's patient stands in the numbering of its kind: (N,) in [0, 1).

    Numbers follow the order of acquisition, and with it rooms, protocols and archives: blocks of consecutive numbers
    differ as a whole, where patients drawn at random do not. Each scheme of *Chest X-Ray Images (Pneumonia)* counts for
    itself; where names are of another scheme, each class does, in the order of its names.
    """
    patients = [patient_of(image.path) for image in images]
    kinds: dict[str, str] = {}
    if are_numbered(patients):
        kinds = {patient: patient.rpartition("-")[0] for patient in patients}
    else:
        for patient, image in zip(patients, images, strict=True):
            kinds.setdefault(patient, str(image.label))
    counts = Counter(patients)
    before: dict[str, float] = {}
    for kind in set(kinds.values()):
        members = sorted((p for p in counts if kinds[p] == kind), key=_natural)
        ends = np.cumsum([counts[p] for p in members])
        before |= {p: (end - counts[p]) / ends[-1] for p, end in zip(members, ends, strict=True)}
    return np.array([before[patient] for patient in patients])


def split_by_blocks(
    images: Sequence[LabelledImage], val_fraction: float, holdout_fraction: float, fold: int = 0
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Part a data set into training, validation and hold-out: whole patients, blocks of consecutive numbers.

    Validation is two blocks of each numbering, at its beginning and its middle; the hold-out, on which nothing may be
    chosen, two others, a quarter further on.

    Parameters
    ----------
    val_fraction, holdout_fraction
        Share of the images of each part, in (0, 0.5) and [0, 0.5).
    fold
        Turns all blocks on by its number of validation blocks.

    Returns
    -------
    Indices of the three parts, ascending; the hold-out may be empty.

    Raises
    ------
    DataError
        If a part that should hold images lacks a class.
    """
    # Rounded, because 0.6 % 0.5 is less than 0.1.
    in_half = ((positions(images) - fold * val_fraction / 2) % 0.5).round(9) % 0.5
    validation = in_half < val_fraction / 2
    holdout = (in_half >= 0.25) & (in_half < 0.25 + holdout_fraction / 2) & ~validation
    labels = np.array([image.label for image in images])
    parts = {"training": ~validation & ~holdout, "validation": validation, "hold-out": holdout}
    for name, mask in parts.items():
        if len(set(labels[mask])) < 2 and (holdout_fraction or name != "hold-out"):
            raise DataError(
                f"no patients of a class are left for {name}; add data or change --val-fraction and --holdout-fraction"
            )
    first, second, third = (np.flatnonzero(mask) for mask in parts.values())
    return first, second, third


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers inside names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

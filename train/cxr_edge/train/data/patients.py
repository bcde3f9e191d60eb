"""The patient of each image, and splits that keep all images of a patient together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage
from cxr_edge.runtime.errors import DataError

# A number alone does not identify a patient: bacteria and virus are numbered separately, and so are IM and NORMAL2-IM.
_PERSON = re.compile(r"person(\d+)_(bacteria|virus)", re.IGNORECASE)
_NUMBERED = re.compile(r"(bacteria|virus|IM|NORMAL\d*-IM)-(\d+)")
_NORMAL = re.compile(r"(NORMAL\d+-IM|IM)-(\d+)", re.IGNORECASE)


def patient_of(path: Path) -> str:
    """Identify the patient of an image of *Chest X-Ray Images (Pneumonia)* by its file name.

    An image whose name follows another scheme counts as a patient of its own.

    >>> patient_of(Path("person1000_virus_1681.jpeg")), patient_of(Path("NORMAL2-IM-1427-0001.jpeg"))
    ('virus-1000', 'NORMAL2-IM-1427')
    """
    if match := _PERSON.match(path.name):
        return f"{match[2].lower()}-{int(match[1])}"
    if match := _NORMAL.match(path.name):
        return f"{match[1].upper()}-{int(match[2])}"
    return path.stem


def are_numbered(patients: Sequence[str]) -> bool:
    """Whether all patients follow a scheme of *Chest X-Ray Images (Pneumonia)*, whose numbers have an order."""
    return all(_NUMBERED.fullmatch(patient) for patient in patients)


def positions(images: Sequence[LabelledImage]) -> npt.NDArray[np.float64]:
    """Position of each image's patient in the numbering of its kind: (N,) in [0, 1).

    Numbers follow the order of acquisition, and so rooms, protocols and archives. Blocks of consecutive numbers
    therefore differ as a whole, while random samples of patients do not. Each scheme of *Chest X-Ray Images
    (Pneumonia)* is numbered separately. If names follow another scheme, each class is ordered by name.
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
    """Split a data set into training, validation and hold-out by blocks of consecutive patient numbers.

    Validation consists of two blocks of each numbering, at its beginning and in its middle. The hold-out, on which
    nothing may be chosen, consists of two blocks a quarter further on.

    Parameters
    ----------
    val_fraction, holdout_fraction
        Shares of the images, in (0, 0.5) and [0, 0.5).
    fold
        Cross-validation fold index: all blocks are shifted by this many validation blocks.

    Returns
    -------
    Indices of the three parts, ascending; the hold-out may be empty.

    Raises
    ------
    DataError
        If a part has no images of a class.
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
                f"no patients of a class are left for {name}; add data, or change --val-fraction and --holdout-fraction"
            )
    first, second, third = (np.flatnonzero(mask) for mask in parts.values())
    return first, second, third


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that orders the numbers in names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

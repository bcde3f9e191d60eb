"""Who is on which image, and splits that never part a patient's images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.dataset import LabelledImage
from cxr_edge.runtime.errors import DataError

# The number alone is wrong in both directions: bacteria and virus count persons apart, and IM and NORMAL2-IM too.
_PERSON = re.compile(r"person(\d+)_(bacteria|virus)", re.IGNORECASE)
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


def split_by_patient(
    images: Sequence[LabelledImage], fraction: float, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Part a data set into two, whole patients each, classes in proportion.

    Parameters
    ----------
    fraction
        Share of the images for the second part, in (0, 0.5]; taken as 1 of round(1 / fraction) folds.

    Returns
    -------
    Indices of the first and of the second part, ascending.

    Raises
    ------
    DataError
        If a class has too few patients for that.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([image.label for image in images])
    patients = np.array([patient_of(image.path) for image in images])
    folds = round(1 / fraction)
    fewest = min(len(set(patients[labels == label])) for label in (0, 1))
    if fewest < folds:
        raise DataError(
            f"a class has images of only {fewest} patients: too few to hold out {fraction:.0%} of them; "
            "add data or raise --val-fraction"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    first, second = next(splitter.split(labels, labels, patients))
    return first, second

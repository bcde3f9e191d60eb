from pathlib import Path

import numpy as np
import pytest

from cxr_edge.runtime import DataError
from cxr_edge.runtime.dataset import LabelledImage, read_dataset
from cxr_edge.train.patients import patient_of, split_by_patient


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("person23_bacteria_1.jpeg", "person23_bacteria_2.jpeg", True),
        ("person23_bacteria_1.jpeg", "person23_virus_1.jpeg", False),
        ("person23_virus_1.jpeg", "person23_virus_1_2.jpeg", True),
        ("IM-0115-0001.jpeg", "IM-0115-0002.jpeg", True),
        ("IM-0115-0001.jpeg", "NORMAL2-IM-0115-0001.jpeg", False),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115-0001-0002.jpeg", True),
        ("other-1.png", "other-2.png", False),
    ],
)
def test_who_is_on_an_image(first, second, same):
    assert (patient_of(Path(first)) == patient_of(Path(second))) is same


def test_no_patient_is_on_both_sides(phantoms):
    images = read_dataset(phantoms)
    first, second = split_by_patient(images, 0.2, seed=3)
    sides = [{patient_of(images[i].path) for i in rows} for rows in (first, second)]
    assert not sides[0] & sides[1]
    assert sorted([*first, *second]) == list(range(len(images)))
    assert 0.1 < len(second) / len(images) < 0.3
    labels = np.array([image.label for image in images])
    assert abs(labels[second].mean() - labels.mean()) < 0.1


def test_too_few_patients_is_an_error_before_training():
    images = [LabelledImage(Path(f"person{n}_virus_1.jpeg"), 1) for n in range(20)]
    images += [LabelledImage(Path(f"IM-0001-000{n}.jpeg"), 0) for n in range(9)]
    with pytest.raises(DataError, match="only 1 patients"):
        split_by_patient(images, 0.2, seed=0)

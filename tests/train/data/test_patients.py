from pathlib import Path

import numpy as np
import pytest

from cxr_edge.common.dataset import LabelledImage, read_dataset
from cxr_edge.runtime import DataError
from cxr_edge.train.data.patients import patient_of, positions, split_by_blocks


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


def test_no_patient_is_in_two_parts(phantoms):
    images = read_dataset(phantoms)
    for fold in range(3):
        parts = split_by_blocks(images, 0.2, 0.2, fold)
        patients = [{patient_of(images[i].path) for i in rows} for rows in parts]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
        assert sorted(np.concatenate(parts)) == list(range(len(images)))
        labels = np.array([image.label for image in images])
        for rows, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
            assert abs(len(rows) / len(images) - share) < 0.1
            assert abs(labels[rows].mean() - labels.mean()) < 0.1


def test_parts_are_blocks_of_consecutive_numbers():
    images = [LabelledImage(Path(f"IM-{n:04}-0001.jpeg"), 0) for n in range(100)]
    images += [LabelledImage(Path(f"person{n}_virus_1.jpeg"), 1) for n in range(100)]
    numbers = [[i for i in rows if i < 100] for rows in split_by_blocks(images, 0.2, 0.1)[1:]]
    assert numbers == [[*range(10), *range(50, 60)], [*range(25, 30), *range(75, 80)]]
    turned = [i for i in split_by_blocks(images, 0.2, 0.1, fold=1)[1] if i < 100]
    assert turned == [*range(10, 20), *range(60, 70)]


def test_numbers_are_ordered_by_value_and_names_of_any_scheme_have_an_order():
    images = [LabelledImage(Path(name), 0) for name in ("b2.png", "b10.png", "a.png", "b1.png")]
    assert positions(images).tolist() == [0.5, 0.75, 0.0, 0.25]


def test_no_hold_out_is_an_empty_part(phantoms):
    assert not len(split_by_blocks(read_dataset(phantoms), 0.2, 0)[2])


def test_too_few_patients_is_an_error_before_training():
    images = [LabelledImage(Path(f"person{n}_virus_1.jpeg"), 1) for n in range(20)]
    images += [LabelledImage(Path(f"IM-0001-000{n}.jpeg"), 0) for n in range(9)]
    with pytest.raises(DataError, match="left for training; add data"):
        split_by_blocks(images, 0.2, 0.1)

"""Labelled folders of radiographs."""

import hashlib

import pytest

from cxr_edge.common.dataset import (
    LabelledImage,
    contents,
    evenly,
    fingerprint,
    has_content,
    read_dataset,
    read_pixels,
)
from cxr_edge.runtime import DataError


def test_pixels_name_every_broken_file(tmp_path):
    with pytest.raises(DataError, match="2 of 2"):
        read_pixels([LabelledImage(tmp_path / n, 0) for n in ("a.png", "b.png")])


def test_evenly_spans_the_whole_order_without_repetition():
    assert evenly(range(100), 5) == [0, 25, 50, 74, 99]
    assert evenly(range(3), 32) == [0, 1, 2] and evenly([], 4) == []


def test_the_fingerprint_is_of_class_name_content_and_order(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"content")
    a, b = (LabelledImage(tmp_path / name, 0) for name in ("a.png", "b.png"))
    others = [[b, a], [a], [LabelledImage(a.path, 1), b]]
    first = fingerprint([a, b])
    assert fingerprint([a, b]) == first and first not in map(fingerprint, others)
    a.path.write_bytes(b"changed")
    assert fingerprint([a, b]) != first


def test_splits_are_chosen_by_name_and_a_split_may_stand_alone(phantoms):
    everything = read_dataset(phantoms)
    parts = [read_dataset(phantoms, (split,)) for split in ("train", "test")]
    assert everything == parts[0] + parts[1] and read_dataset(phantoms / "test") == parts[1]
    assert {image.label for image in parts[0]} == {0, 1}
    with pytest.raises(DataError, match="Kaggle layout"):
        read_dataset(phantoms, ("val",))


def test_contents_find_the_images_of_a_data_set(phantoms, tmp_path):
    images = read_dataset(phantoms)
    text = contents(images)
    assert len(text) <= 7 * len(images) + 4
    digests = [hashlib.sha256(image.path.read_bytes()).digest() for image in images]
    assert all(has_content(text, digests))
    assert has_content(text, [hashlib.sha256(b"another").digest()]) == [False]
    with pytest.raises(ValueError):
        has_content("AAAA", digests)

import cv2
import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.train.data.appearance import FEWEST, appearance, appearance_clusters
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb


@pytest.fixture(scope="module")
def drawn(phantoms):
    images = read_dataset(phantoms)
    return read_pixels(images), np.array([image.label for image in images])


def two_rooms(pixels):
    """Every second image from a room with soft, framed and flat images."""
    other = np.arange(len(pixels)) % 2 == 1
    seen = pixels.copy()
    for name in ("blur, sigma 1.5 pixels", "contrast 0.7", "border of 8 % black"):
        seen[other] = perturb(seen[other], PERTURBATIONS[name])
    return seen, other


def test_clusters_part_rooms_not_classes(drawn):
    pixels, labels = drawn
    seen, other = two_rooms(pixels)
    clusters = appearance_clusters(seen, labels)
    for name in range(clusters.max() + 1):
        inside = clusters == name
        assert other[inside].mean() in (0, 1)
        assert min((labels[inside] == label).sum() for label in (0, 1)) >= FEWEST
    assert clusters.max() >= 1


def test_clusters_are_numbered_by_size_and_always_the_same(drawn):
    pixels, labels = drawn
    seen, _ = two_rooms(pixels)
    clusters = appearance_clusters(seen, labels)
    counts = np.bincount(clusters)
    assert (counts > 0).all() and (np.diff(counts) <= 0).all()
    np.testing.assert_array_equal(clusters, appearance_clusters(seen, labels))


def test_few_images_or_one_class_are_one_cluster(drawn):
    pixels, labels = drawn
    assert set(appearance_clusters(pixels[:3], labels[:3])) == {0}
    assert set(appearance_clusters(pixels, np.ones(len(pixels), int))) == {0}


def test_sharpness_is_in_the_description():
    random = np.random.default_rng(0)
    sharp = random.integers(0, 255, (224, 224)).astype(np.uint8)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    first, second = appearance(np.stack([sharp, soft])[..., np.newaxis])
    assert first[7] > 2 * second[7]  # the finest band

import cv2
import numpy as np
import pytest

from cxr_edge.runtime.dataset import read_dataset, read_pixels
from cxr_edge.train.augment import RandomAffine, RandomBands, augmentation


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms, ("test",))).astype(np.float32)


def test_augmentation_keeps_range_and_rests_outside_training(pixels):
    layers = augmentation(0)
    changed = np.asarray(layers(pixels, training=True))
    assert changed.shape == pixels.shape
    assert changed.min() >= 0 and changed.max() <= 255.01 and np.abs(changed - pixels).mean() > 5
    np.testing.assert_array_equal(np.asarray(layers(pixels, training=False)), pixels)


def test_the_same_seed_augments_alike(pixels):
    first, again, other = (np.asarray(augmentation(seed)(pixels, training=True)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_an_affine_without_range_changes_nothing(pixels):
    still = RandomAffine(degrees=0, shift=0, zoom=(1, 1), stretch=1, seed=0)
    np.testing.assert_allclose(np.asarray(still(pixels, training=True)), pixels, atol=1e-2)


def test_zoom_magnifies_about_the_centre(pixels):
    image = pixels[:1]
    zoomed = np.asarray(RandomAffine(0, 0, (1.25, 1.25), 1, seed=0)(image, training=True))[0, :, :, 0]
    matrix = cv2.getRotationMatrix2D((111.5, 111.5), 0, 1.25)
    expected = cv2.warpAffine(image[0, :, :, 0], matrix, (224, 224))
    assert np.abs(zoomed - expected)[4:-4, 4:-4].max() < 1


def test_rotation_turns_without_shrinking(pixels):
    turned = np.asarray(RandomAffine(30, 0, (1, 1), 1, seed=1)(pixels[:1], training=True))[0, :, :, 0]
    angles = np.linspace(-30, 30, 121)
    candidates = [
        cv2.warpAffine(pixels[0, :, :, 0], cv2.getRotationMatrix2D((111.5, 111.5), a, 1), (224, 224)) for a in angles
    ]
    assert min(np.abs(turned - candidate).mean() for candidate in candidates) < 1.5


def test_bands_of_gain_one_change_nothing_and_part_the_image_by_scale(pixels):
    same = RandomBands((1, 1), (1, 1), (1, 1), seed=0)(pixels, training=True)
    np.testing.assert_allclose(np.asarray(same), pixels, atol=1e-2)
    soft = np.asarray(RandomBands((1, 1), (1, 1), (0.1, 0.1), seed=0)(pixels, training=True))
    flat = np.asarray(RandomBands((0.1, 0.1), (1, 1), (1, 1), seed=0)(pixels, training=True))
    detail, shading = (np.abs(np.diff(x, axis=1)).mean() for x in (soft, pixels)), (x.std() for x in (flat, pixels))
    for less, before in (detail, shading):
        assert less < before

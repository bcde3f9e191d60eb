import cv2
import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.dataset import read_dataset, read_pixels

augment = Lazy("cxr_edge.train.fit.augment.recipe")
position = Lazy("cxr_edge.train.fit.augment.position")
tone = Lazy("cxr_edge.train.fit.augment.tone")


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms, ("test",))).astype(np.float32)


def test_augmentation_keeps_range_and_rests_outside_training(pixels):
    layers = augment.augmentation(0)
    changed = np.asarray(layers(pixels, training=True))
    assert changed.shape == pixels.shape
    assert changed.min() >= 0 and changed.max() <= 255.01 and np.abs(changed - pixels).mean() > 5
    np.testing.assert_array_equal(np.asarray(layers(pixels, training=False)), pixels)


def test_the_same_seed_augments_alike(pixels):
    first, again, other = (np.asarray(augment.augmentation(seed)(pixels, training=True)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_an_affine_without_range_changes_nothing(pixels):
    still = position.RandomAffine(degrees=0, shift=0, zoom=(1, 1), stretch=1, seed=0)
    np.testing.assert_allclose(np.asarray(still(pixels, training=True)), pixels, atol=1e-2)


def test_zoom_magnifies_about_the_centre(pixels):
    image = pixels[:1]
    zoomed = np.asarray(position.RandomAffine(0, 0, (1.25, 1.25), 1, seed=0)(image, training=True))[0, :, :, 0]
    matrix = cv2.getRotationMatrix2D((111.5, 111.5), 0, 1.25)
    expected = cv2.warpAffine(image[0, :, :, 0], matrix, (224, 224))
    assert np.abs(zoomed - expected)[4:-4, 4:-4].max() < 1


def test_rotation_turns_without_shrinking(pixels):
    turned = np.asarray(position.RandomAffine(30, 0, (1, 1), 1, seed=1)(pixels[:1], training=True))[0, :, :, 0]
    angles = np.linspace(-30, 30, 121)
    candidates = [
        cv2.warpAffine(pixels[0, :, :, 0], cv2.getRotationMatrix2D((111.5, 111.5), a, 1), (224, 224)) for a in angles
    ]
    assert min(np.abs(turned - candidate).mean() for candidate in candidates) < 1.5


def test_bands_of_gain_one_change_nothing_and_part_the_image_by_scale(pixels):
    same = tone.RandomBands((1, 1), (1, 1), (1, 1), seed=0)(pixels, training=True)
    np.testing.assert_allclose(np.asarray(same), pixels, atol=1e-2)
    soft = np.asarray(tone.RandomBands((1, 1), (1, 1), (0.1, 0.1), seed=0)(pixels, training=True))
    flat = np.asarray(tone.RandomBands((0.1, 0.1), (1, 1), (1, 1), seed=0)(pixels, training=True))
    detail, shading = (np.abs(np.diff(x, axis=1)).mean() for x in (soft, pixels)), (x.std() for x in (flat, pixels))
    for less, before in (detail, shading):
        assert less < before


def test_equalised_images_lie_between_themselves_and_opencvs(pixels):
    blended = np.asarray(tone.RandomEqualise(levels=256, seed=0)(pixels, training=True))
    shares = []
    for image, before in zip(blended, pixels, strict=True):
        wholly = cv2.equalizeHist(before[:, :, 0].astype(np.uint8)).astype(np.float32)[:, :, None]
        change = wholly - before
        shares.append((change * (image - before)).sum() / (change**2).sum())
        assert np.abs(image - (before + shares[-1] * change)).max() < 6
    assert 0 <= min(shares) < 0.4 and 0.6 < max(shares) <= 1.1
    coarse = np.asarray(tone.RandomEqualise(seed=0)(pixels, training=True))
    assert np.abs(coarse - blended).mean() < 2


@pytest.mark.parametrize("limit", [2.0, 4.0])
def test_local_equalisation_is_much_like_opencvs_clahe(limit):
    """On a shaded texture. 16 intervals of gray levels instead of 256 leave a small difference."""
    rows, columns = np.mgrid[:224, :224]
    texture = np.random.default_rng(0).normal(0, 8, (224, 224)) + 6 * np.sin(rows / 5)
    gray = np.clip(60 + columns * 0.5 + texture, 0, 255).astype(np.uint8)
    expected = cv2.createCLAHE(clipLimit=limit, tileGridSize=(8, 8)).apply(gray)
    change = tone.RandomLocalEqualise((limit, limit * 1.001), seed=0)
    found = np.asarray(change(gray[None, ..., None].astype(np.float32), training=True))[0, ..., 0]
    assert found.min() >= 0 and found.max() <= 255.01

    def alike(image):
        return np.corrcoef(image.ravel(), expected.ravel())[0, 1]

    assert alike(found) > 0.98 and 1 - alike(found) < 0.2 * (1 - alike(gray))


def test_a_frame_covers_each_side_with_one_grey_and_leaves_the_rest(pixels):
    framed = np.asarray(position.RandomFrame(0.2, seed=0)(pixels + 0.5, training=True))[:, :, :, 0]
    widths = set()
    for image, before in zip(framed, pixels[:, :, :, 0] + 0.5, strict=True):
        rows, columns = (np.flatnonzero((image == before).all(axis=axis)) for axis in (1, 0))
        assert len(rows) == 0 and len(columns) == 0  # a strip crosses every row and column
        kept_rows, kept_columns = (np.flatnonzero((image == before).any(axis=axis)) for axis in (1, 0))
        top, bottom, left, right = kept_rows[0], 223 - kept_rows[-1], kept_columns[0], 223 - kept_columns[-1]
        widths |= {int(top), int(bottom), int(left), int(right)}
        inner = (slice(top, 224 - bottom), slice(left, 224 - right))
        np.testing.assert_array_equal(image[inner], before[inner])
        covered = np.ones_like(image, bool)
        covered[inner] = False
        assert len(np.unique(image[covered])) == 1 and 0 <= image[covered][0] <= 255
    assert max(widths) <= 45 and len(widths) > 10

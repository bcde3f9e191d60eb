from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from fuzz.seeds import encode, exif_segment, radiograph

from cxr_edge.runtime import ImageError
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.preprocess import MAX_INTEGRAL, SCALE, minimum_sides, preprocess, read_input, read_inputs


def test_network_sized_images_pass_unchanged():
    gray = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(gray)[:, :, 0], gray)


def test_shrinking_averages_every_pixel():
    checkerboard = (255 * (np.indices((448, 448)).sum(axis=0) % 2)).astype(np.uint8)
    assert np.abs(preprocess(checkerboard).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("shape", [(448, 448), (449, 1000), (1023, 225), (224, 900), (1317, 1857)])
def test_each_pixel_is_the_mean_of_its_area(shape):
    """Against weights that are made one by one."""

    def weights(size: int) -> np.ndarray:
        edges = np.arange(225) * size / 224
        covered = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
        return np.maximum(covered, 0) / (size / 224)

    gray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean = weights(shape[0]) @ gray @ weights(shape[1]).T
    assert np.abs(preprocess(gray)[:, :, 0] - mean).max() <= 0.5 + 1e-6
    of_opencv = cv2.resize(gray, (224, 224), interpolation=cv2.INTER_AREA)
    assert np.abs(preprocess(gray)[:, :, 0].astype(int) - of_opencv).max() <= 1


def test_white_pictures_stay_white_up_to_the_largest_integral_image():
    for shape in ((MAX_INTEGRAL // 4000, 4000), (MAX_INTEGRAL // 4000 + 1, 4000)):
        assert (preprocess(np.full(shape, 255, np.uint8)) == 255).all()


def test_all_ways_of_reading_give_the_same_input_in_any_thread():
    wide = encode(".jpg", radiograph(700, 1500))
    files = [wide, wide[:2] + exif_segment(6) + wide[2:], encode(".png", radiograph(900, 1000))]
    expected = [preprocess(read_image(file, *minimum_sides())) for file in files]
    np.testing.assert_array_equal(expected, list(read_inputs(files)))
    with ThreadPoolExecutor(8) as pool:
        for file, pixels in zip(files * 20, pool.map(read_input, files * 20), strict=True):
            np.testing.assert_array_equal(pixels, expected[files.index(file)])


def test_a_jpeg_is_reduced_only_while_its_sides_suffice():
    height, width = 150, 100
    assert minimum_sides(height, width) == (SCALE * height, SCALE * width)
    large = encode(".jpg", radiograph(2 * SCALE * height, 2 * SCALE * width))
    reduced, full = read_input(large, height, width), preprocess(read_image(large), height, width)
    assert read_image(large, *minimum_sides(height, width)).shape == (SCALE * height, SCALE * width)
    assert reduced.shape == full.shape == (height, width, 1)
    assert 0 < np.abs(reduced.astype(int) - full).mean() < 0.5
    small = encode(".jpg", radiograph(2 * SCALE * height - 2, 2 * SCALE * width))
    np.testing.assert_array_equal(read_input(small, height, width), preprocess(read_image(small), height, width))


def test_the_limit_of_pixels_reaches_the_decoder():
    with pytest.raises(ImageError, match="expected at most 1,000 pixels"):
        read_input(encode(".png", radiograph(100, 100)), max_pixels=1000)
    assert isinstance(next(read_inputs([encode(".png", radiograph(100, 100))], max_pixels=1000)), ImageError)


def test_enlarging_works():
    assert preprocess(np.full((50, 300), 9, np.uint8)).shape == (224, 224, 1)


@pytest.mark.parametrize("shape", [(100, 600), (600, 100), (223, 225), (100, 100)])
def test_an_image_that_is_too_small_in_one_direction_is_interpolated(shape):
    """Areas of less than a pixel would give steps: averaging is for images that shrink in both directions."""
    gray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    interpolated, averaged = (
        cv2.resize(gray, (224, 224), interpolation=each) for each in (cv2.INTER_LINEAR, cv2.INTER_AREA)
    )
    np.testing.assert_array_equal(preprocess(gray)[:, :, 0], interpolated)
    if shape != (100, 100):  # where both sides grow, OpenCV's area interpolation is a linear one
        assert (interpolated != averaged).any()


def test_read_inputs_keeps_order_and_passes_errors_on(xray, tmp_path):
    results = list(read_inputs([xray, tmp_path / "absent", xray] * 40))
    assert len(results) == 120
    assert all(isinstance(r, ImageError) == (i % 3 == 1) for i, r in enumerate(results))

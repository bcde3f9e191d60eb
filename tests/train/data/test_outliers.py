import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.train.data.outliers import DRAWN, outliers


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms, ("test",)), 96, 96)


def test_every_kind_is_made_as_pixels_and_no_two_alike(pixels):
    made = outliers(pixels, 6, seed=0)
    assert made.keys() == {"inverted", "turned", *DRAWN}
    for kind, images in made.items():
        assert images.shape == (6, 96, 96, 1) and images.dtype == np.uint8, kind
        assert len({image.tobytes() for image in images}) > 1, kind


def test_the_seed_decides(pixels):
    first, again, other = (outliers(pixels, 3, seed)["CT slice"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_inverted_and_turned_are_made_of_the_radiographs(pixels):
    made = outliers(pixels, 4, seed=0)
    known = {image.tobytes() for image in pixels}
    for image in made["inverted"]:
        assert (255 - image).tobytes() in known
    for image in made["turned"]:
        assert any(np.rot90(image, k).tobytes() in known for k in (1, 2, 3)) and image.tobytes() not in known

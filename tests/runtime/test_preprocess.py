import numpy as np

from cxr_edge.runtime import ImageError
from cxr_edge.runtime.preprocess import preprocess, read_inputs


def test_network_sized_images_pass_unchanged():
    gray = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(gray)[:, :, 0], gray)


def test_shrinking_averages_every_pixel():
    checkerboard = (255 * (np.indices((448, 448)).sum(axis=0) % 2)).astype(np.uint8)
    assert np.abs(preprocess(checkerboard).astype(int) - 127).max() <= 1


def test_enlarging_works():
    assert preprocess(np.full((50, 300), 9, np.uint8)).shape == (224, 224, 1)


def test_read_inputs_keeps_order_and_passes_errors_on(xray, tmp_path):
    results = list(read_inputs([xray, tmp_path / "absent", xray] * 40))
    assert len(results) == 120
    assert all(isinstance(r, ImageError) == (i % 3 == 1) for i, r in enumerate(results))

import numpy as np
import pytest

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.explanation.gradcam import FAINT_LOGIT, overlay, upsample

CONTRACT = InputContract()


@pytest.mark.parametrize("origin", [0.0, 15.5, 31.0])
def test_a_cell_peaks_at_the_centre_of_its_receptive_field(origin):
    heatmap = np.zeros((7, 7), np.float32)
    heatmap[2, 4] = 1
    spread = upsample(heatmap, HeatmapGeometry(32.0, origin), CONTRACT, 448, 672)
    rows, columns = np.nonzero(spread > 0.98 * spread.max())
    # Pixel centres: network pixel c is at (c + 0.5)·scale - 0.5 of the image.
    assert abs(rows.mean() - ((origin + 64 + 0.5) * 2 - 0.5)) <= 1
    assert abs(columns.mean() - ((origin + 128 + 0.5) * 3 - 0.5)) <= 1.5


def test_upsampling_keeps_constants_and_bounds():
    geometry = HeatmapGeometry(32.0, 31.0)
    np.testing.assert_allclose(upsample(np.full((7, 7), 3, np.float32), geometry, CONTRACT, 100, 90), 3, rtol=1e-6)


def test_no_contribution_leaves_the_radiograph_grey():
    gray = np.full((300, 400), 120, np.uint8)
    picture = overlay(gray, np.zeros((7, 7), np.float32), HeatmapGeometry(32.0, 15.5), CONTRACT, "x")
    middle = picture[100:300, 100:300]
    assert (middle == 120).all()


def test_weak_maps_stay_faint_and_strong_ones_do_not():
    gray = np.full((300, 400), 120, np.uint8)

    def colour(peak):
        heatmap = np.full((7, 7), peak, np.float32)
        picture = overlay(gray, heatmap, HeatmapGeometry(32.0, 15.5), CONTRACT, "x")[100:300, 100:300].astype(int)
        return np.ptp(picture, axis=2).mean()

    assert colour(FAINT_LOGIT / 20) < 15 < 60 < colour(1.0)

"""Which lungs an image shows, and how much of the evidence lies in them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from support import SHARED, needs_shared

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.explanation.gradcam import OUTLINE_RGB, overlay, upsample
from cxr_edge.runtime.explanation.lungs import _regions, convex_hull, evidence_inside, find_lungs
from cxr_edge.runtime.prediction import Prediction, describe

CONTRACT = InputContract()
GEOMETRY = HeatmapGeometry(32.0, 24.2)


def drawn(*ellipses, side=28):
    """A map with an ellipse for each (x, y, half width, half height)."""
    picture = np.zeros((side, side), np.float32)
    for x, y, *axes in ellipses:
        cv2.ellipse(picture, (x, y), axes, 0, 0, 360, 1, cv2.FILLED)
    return picture


LEFT, RIGHT = (8, 14, 4, 8), (20, 14, 4, 8)


@pytest.mark.parametrize(
    ("ellipses", "found"),
    [
        ([], "none"),
        ([(8, 14, 1, 1)], "none"),
        ([LEFT], "one"),
        ([LEFT, RIGHT], "both"),
        ([LEFT, RIGHT, (14, 26, 1, 1)], "both"),
        ([LEFT, (25, 14, 4, 8)], "cut off"),
        ([(8, 2, 4, 8), (20, 2, 4, 8)], "cut off"),
        ([LEFT, (20, 25, 4, 8)], "cut off"),
        ([(1, 14, 4, 8)], "cut off"),
    ],
)
def test_lungs_are_counted_and_those_that_reach_the_border_are_told(ellipses, found):
    assert find_lungs(drawn(*ellipses)).found == found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_regions_are_those_of_opencv(share):
    mask = np.random.default_rng(0).random((28, 21)) < share
    regions, boxes = _regions(mask)
    count, expected, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    assert len(boxes) == count and np.array_equal(regions > 0, expected > 0)
    # OpenCV numbers them in another order.
    pairs = set(zip(regions.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len({n for n, _ in pairs}) == len({n for _, n in pairs})
    for ours, theirs in pairs - {(0, 0)}:
        left, top, width, height, area = stats[theirs].tolist()
        assert boxes[ours] == (area, left, top, width, height)


def test_a_speck_does_not_widen_the_hull():
    expected = find_lungs(drawn(LEFT, RIGHT)).hull
    np.testing.assert_array_equal(find_lungs(drawn(LEFT, RIGHT, (1, 1, 1, 1))).hull, expected)
    assert expected[14, 14] and not expected[1, 1]  # between the lungs; the speck


def test_the_hull_is_that_of_the_tiles():
    mask = np.zeros((28, 28), bool)
    mask[[2, 2, 20], [3, 15, 3]] = True
    rows, columns = np.mgrid[:28, :28]
    # Distance (tiles) of a centre from the slanted side; positive outside.
    beyond = (12 * (rows - 2) + 18 * (columns - 3) - 12 * 18) / np.hypot(12, 18)
    box = (rows >= 2) & (columns >= 3)
    hull = convex_hull(mask)
    assert hull[box & (beyond <= 0)].all() and not hull[~box | (beyond > 0.5)].any()
    assert not convex_hull(np.zeros((28, 28), bool)).any()


@pytest.mark.parametrize("grid", [(28, 28), (14, 28), (224, 224)])
def test_evidence_is_the_drawn_heatmap_summed_over_the_pixels(grid):
    random = np.random.default_rng(0)
    heatmap = random.uniform(0, 1, (7, 7)).astype(np.float32)
    region = random.uniform(0, 1, grid) > 0.6
    drawn_map = upsample(heatmap, GEOMETRY, CONTRACT, 224, 224).astype(np.float64)
    pixels = np.kron(region, np.ones((224 // grid[0], 224 // grid[1]))) > 0
    share = evidence_inside(heatmap, region, GEOMETRY, CONTRACT)
    assert share == pytest.approx(drawn_map[pixels].sum() / drawn_map.sum(), rel=1e-5)


def test_a_grid_that_does_not_divide_the_image_is_weighted_by_overlap():
    heatmap = np.ones((7, 7), np.float32)
    region = np.zeros((30, 30), bool)
    region[:10] = True
    assert evidence_inside(heatmap, region, GEOMETRY, CONTRACT) == pytest.approx(1 / 3)


def test_all_nothing_and_no_evidence():
    heatmap = np.full((7, 7), 0.1, np.float32)
    everything = np.ones((28, 28), bool)
    assert evidence_inside(heatmap, everything, GEOMETRY, CONTRACT) == pytest.approx(1)
    assert evidence_inside(heatmap, ~everything, GEOMETRY, CONTRACT) == 0
    assert evidence_inside(heatmap / 1e6, everything, GEOMETRY, CONTRACT) is None


def test_the_outline_is_drawn_around_the_lungs_only():
    gray, heatmap = np.full((448, 448), 120, np.uint8), np.zeros((7, 7), np.float32)
    plain = overlay(gray, heatmap, GEOMETRY, CONTRACT, "x")
    outlined = overlay(gray, heatmap, GEOMETRY, CONTRACT, "x", drawn(LEFT))
    _, columns = np.nonzero((plain != outlined).any(axis=2))
    scale = 512 / 28
    assert abs(columns.min() - 4 * scale) < 3 and abs(columns.max() - 13 * scale) < 3
    assert (outlined == OUTLINE_RGB).all(axis=2).sum() > 100
    assert (plain != outlined).any(axis=2).mean() < 0.02


def test_a_caption_may_have_several_lines():
    gray, heatmap = np.full((448, 448), 120, np.uint8), np.zeros((7, 7), np.float32)
    one, two = (overlay(gray, heatmap, GEOMETRY, CONTRACT, caption) for caption in ("a", "a\nb"))
    assert two.shape[0] == one.shape[0] + 24
    np.testing.assert_array_equal(two[52:], one[28:])
    assert two[28:52].any()


@pytest.fixture(scope="module")
def masks():
    """True masks of the training data, each tenth: (N, 224, 224) float32 in {0, 1}."""
    paths = sorted((SHARED / "data" / "lungs").rglob("*.png"))[::10]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in paths]).astype(np.float32)


def found_in(masks):
    return [find_lungs(cv2.resize(mask, (28, 28), interpolation=cv2.INTER_AREA)).found for mask in masks]


@needs_shared
def test_true_masks_show_both_lungs(masks):
    found = found_in(masks)
    assert found.count("both") >= 0.95 * len(found) and set(found) <= {"both", "cut off"}


@needs_shared
@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_true_masks_of_which_a_fifth_is_missing_are_cut_off(masks, side):
    def crop(mask):
        turned = np.rot90(mask, ["top", "right", "bottom", "left"].index(side))
        rows = np.flatnonzero(turned.any(axis=1))
        return cv2.resize(turned[rows[0] + np.ptp(rows) // 5 :], (224, 224), interpolation=cv2.INTER_AREA)

    found = found_in([crop(mask) for mask in masks])
    assert found.count("cut off") >= 0.85 * len(found)


@pytest.mark.parametrize(
    ("found", "share", "line"),
    [
        ("both", 0.974, "97% of the evidence in the hull of the lungs"),
        ("both", None, "no evidence"),
        ("one", 0.5, "50% of the evidence in the hull of the lungs  ONLY ONE LUNG FOUND"),
        ("cut off", 0.5, "50% of the evidence in the hull of the lungs  LUNGS CUT OFF AT THE BORDER"),
        ("none", 0.0, "NO LUNGS FOUND"),
    ],
)
def test_the_caption_says_what_was_found(found, share, line):
    heatmap = np.zeros((7, 7), np.float32)
    lungs = {"lungs": drawn(LEFT), "lungs_found": found, "evidence_in_lungs": share}
    prediction = Prediction("NORMAL", 0.1, -2.0, "balanced", 0.5, heatmap, 1.0, True, {}, **lungs)
    assert describe(prediction).split("\n")[1:] == [line]
    assert "\n" not in describe(replace(prediction, lungs=None))

from pathlib import Path

import numpy as np
import pytest

from cxr_edge.common.metrics import Cases
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.train.evaluation.faithfulness import (
    SHARES,
    border_share,
    crop_border,
    measure_faithfulness,
    replacing_order,
)
from cxr_edge.train.evaluation.subject import Subject

CONTRACT, COARSE, FINE = InputContract(224, 224), HeatmapGeometry(32.0, 15.5), HeatmapGeometry(4.0, 1.5)
#: Of an image that `looks_at_a_square` looks at, and the cell of a coarse map over it.
SQUARE, CELL = np.s_[:, 64:96, 128:160], (2, 4)


def looks_at_a_square(pixels):
    """A model whose probability is how white one square is: it is known what it decides by."""
    share = pixels[SQUARE].mean(axis=(1, 2, 3)) / 255
    heatmap = np.zeros((len(pixels), 7, 7), np.float32)
    heatmap[:, CELL[0], CELL[1]] = share
    return Outputs(share, np.log((share + 1e-6) / (1 - share + 1e-6)), heatmap, np.zeros(len(pixels)))


@pytest.fixture
def subject() -> Subject:
    point = OperatingPoint("balanced", 0.5, "by hand")
    return Subject(
        path=Path("square"), name="square", backend="numpy", input=CONTRACT, heatmap=COARSE,
        operating_points=(point,), temperature=1.0, novelty_threshold=1.0, trained_on=None, trained=None, network=None,
        _runner=looks_at_a_square,
    )  # fmt: skip


def measured(subject: Subject, move: int = 0):
    """Six images with a white square, four without, of ten patients; heatmaps moved by some cells, which is wrong."""
    pixels = np.zeros((10, 224, 224, 1), np.uint8)
    pixels[:6][SQUARE] = 255
    outputs = subject.run(pixels)
    labels = np.repeat((1, 0), (6, 4))
    cases = Cases(labels, outputs.logit, outputs.probability, np.arange(10).astype(str))
    return measure_faithfulness(subject, pixels, cases, np.roll(outputs.heatmap, move, (1, 2)), lambda name: None)


def test_a_heatmap_of_the_evidence_beats_chance_and_another_does_not(subject):
    for move in (3, 0):
        found = measured(subject, move)
        assert found.sample == 6 and not found.randomised
        curves = {each.way: each for each in found.curves if each.substitute == "a normal radiograph"}
        assert set(curves) == {"deletion", "insertion"}
        for curve in curves.values():
            assert curve.heatmap.shape == curve.random.shape == (6, len(SHARES))
            assert curve.of_substitute == 0
            assert curve.gain.value < 0 if move else curve.gain.low > 0.2
    deletion, insertion = curves["deletion"], curves["insertion"]
    np.testing.assert_array_equal(deletion.heatmap[:, [0, -1]], [[1, 0]] * 6)
    np.testing.assert_array_equal(insertion.heatmap[:, [0, -1]], [[0, 1]] * 6)


def test_areas_are_known_where_the_curve_is(subject):
    deletion = next(e for e in measured(subject).curves if e.way == "deletion" and "normal" in e.substitute)
    # The square is 2 % of the pixels and lies, with its surroundings, in the first 1/15 to be replaced.
    assert deletion.heatmap_area.value == pytest.approx(0.5 / 15, abs=0.005)
    assert deletion.random_area.value - deletion.heatmap_area.value == pytest.approx(deletion.gain.value)


def test_nothing_decided_positive_gives_no_curves(subject):
    pixels = np.zeros((4, 224, 224, 1), np.uint8)
    outputs = subject.run(pixels)
    cases = Cases(np.array([0, 1, 0, 1]), outputs.logit, outputs.probability, np.array(list("abcd")))
    found = measure_faithfulness(subject, pixels, cases, outputs.heatmap, lambda name: None)
    assert found.sample == 0 and not found.curves
    assert found.borders[0].empty == 4 and found.borders[0].share.value is None


def test_pixels_are_replaced_hottest_first_and_each_once():
    heatmap = np.zeros((7, 7), np.float32)
    heatmap[CELL] = 1
    hot, chance = replacing_order(heatmap, COARSE, CONTRACT, np.random.default_rng(0))
    for places in (hot, chance):
        np.testing.assert_array_equal(np.sort(places, axis=None), np.arange(224 * 224) / 224**2)
    assert hot[79, 143] < 1e-3 and hot[0, 0] > 0.05
    assert np.corrcoef(hot[160:].ravel(), chance[160:].ravel())[0, 1] > 0.99  # no heat there: by chance


@pytest.mark.parametrize(
    ("where", "share"), [(np.s_[:2, :], 1.0), (np.s_[:, -2:], 1.0), (np.s_[10:46, 10:46], 0.0), (np.s_[:, :], 0.3543)]
)
def test_energy_in_the_border(where, share):
    heatmap = np.zeros((1, 56, 56), np.float32)
    heatmap[0][where] = 3
    assert border_share(heatmap, FINE, CONTRACT)[0] == pytest.approx(share, abs=1e-4)


def test_the_border_is_where_the_cells_look():
    corner = np.zeros((1, 7, 7), np.float32)
    corner[0, 0, 0] = 1
    leaning = HeatmapGeometry(32.0, 31.0)  # the first cell looks further from the edge
    plain, inner = border_share(corner, COARSE, CONTRACT)[0], border_share(corner, leaning, CONTRACT)[0]
    assert plain > inner + 0.1
    assert np.isnan(border_share(np.zeros((1, 7, 7), np.float32), COARSE, CONTRACT)[0])


def test_borders_are_parted_by_truth_and_decision(subject):
    everyone, *parts = measured(subject).borders
    assert (everyone.images, everyone.empty) == (10, 4)
    assert [(part.truth, part.decided, part.images) for part in parts] == [
        ("NORMAL", "NORMAL", 4), ("NORMAL", "PNEUMONIA", 0), ("PNEUMONIA", "NORMAL", 0), ("PNEUMONIA", "PNEUMONIA", 6),
    ]  # fmt: skip
    assert parts[0].share.value is None and parts[3].share.value == everyone.share.value < 0.1


def test_the_border_is_cut_away_and_the_rest_enlarged():
    image = np.full((200, 100), 255, np.uint8)
    image[20:180, 10:90] = np.arange(80, dtype=np.uint8)
    cropped = crop_border(image)
    assert cropped.shape == (200, 100, 1) and cropped.max() == 79
    assert (np.diff(cropped[100, :, 0].astype(int)) >= 0).all()

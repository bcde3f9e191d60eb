"""The threshold of a site from log-odds: with labels, and from the valley between two modes."""

import numpy as np
import pytest

from cxr_edge.runtime import CalibrationError
from cxr_edge.sites.calibration.fit import Wish, to_log_odds
from cxr_edge.sites.calibration.labelled import fit_labelled, rates
from cxr_edge.sites.calibration.unlabelled import find_valley, fit_unlabelled

WISH = Wish(0.0)


def drawn(normal, pneumonia, centres=(-5, 8), seed=0):
    """Log-odds of both classes, each with a tail towards the other, as measured on radiographs."""
    random = np.random.default_rng(seed)
    low = centres[0] - 1.5 + random.gamma(1.5, 1, normal)
    return np.concatenate([low, centres[1] + 2 - random.gamma(1.5, 1.5, pneumonia)])


def labels(normal, pneumonia):
    return np.repeat([0, 1], [normal, pneumonia])


def test_a_threshold_that_lies_in_the_valley_stays():
    fit = fit_unlabelled(drawn(60, 60), WISH)
    assert abs(fit.threshold) < 0.1 and fit.method == "valley"
    assert fit.prevalence == pytest.approx(0.5, abs=0.02)
    assert (fit.slope, fit.bias) == (1, -fit.threshold)


@pytest.mark.parametrize("shift", [-4, 4])
def test_a_shifted_site_moves_the_threshold_with_it(shift):
    z, truth = drawn(70, 50) + shift, labels(70, 50)
    fit = fit_unlabelled(z, WISH)
    assert np.sign(fit.threshold) == np.sign(shift)
    assert ((z >= fit.threshold) == truth).mean() > max(0.97, ((z >= 0) == truth).mean() - 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_one_class_is_not_taken_for_two(seed):
    for z in (drawn(120, 0, seed=seed), drawn(0, 120, seed=seed)):
        half = np.where(np.arange(120) < 60, 2.5, 0.0)  # the same class in another room
        for one in (z, z + half):
            with pytest.raises(CalibrationError, match=r"found .*expected .*--labels"):
                fit_unlabelled(one, WISH)


def test_a_rare_class_is_refused():
    with pytest.raises(CalibrationError, match="--labels"):
        fit_unlabelled(drawn(198, 2), WISH)


def test_both_modes_on_one_side_are_refused():
    with pytest.raises(CalibrationError, match="on one side of the shipped threshold"):
        fit_unlabelled(drawn(60, 60) + 12, WISH)


def test_two_modes_that_lie_too_near_are_refused():
    with pytest.raises(CalibrationError, match=r"found (one mode|both modes|modes|a density)"):
        fit_unlabelled(drawn(60, 60, (-1.0, 1.0)), WISH)


def test_prevalence_holds_the_threshold():
    z = drawn(60, 60)
    assert fit_unlabelled(z, Wish(0.0, (0.4, 0.6))).threshold == fit_unlabelled(z, WISH).threshold
    with pytest.raises(
        CalibrationError, match=r"images above the valley, expected .* of 10% to 20%; correct --prevalence"
    ):
        fit_unlabelled(z, Wish(0.0, (0.1, 0.2)))


def test_few_images_are_refused():
    with pytest.raises(CalibrationError, match="found 99 images without labels, expected 100"):
        fit_unlabelled(drawn(50, 49), WISH)


def test_the_valley_is_where_the_density_is_least():
    valley = find_valley(drawn(100, 100))
    assert valley.left < valley.bottom < valley.right and valley.depth < 0.2
    assert valley.density.sum() * (valley.grid[1] - valley.grid[0]) == pytest.approx(1, abs=0.01)


def test_labels_move_the_bias_and_with_many_the_slope():
    few = fit_labelled(drawn(30, 30) + 4, labels(30, 30), WISH)
    assert few.method == "labels: bias" and few.slope == 1 and few.threshold == pytest.approx(-few.bias)
    assert few.threshold > 1
    many = fit_labelled(0.4 * drawn(150, 150), labels(150, 150), WISH)
    assert many.method == "labels: slope and bias" and many.slope > 1


def test_the_prevalence_of_the_site_weights_the_labels():
    z, truth = drawn(40, 40, (-1, 2)), labels(40, 40)
    rare, even, common = (fit_labelled(z, truth, Wish(0.0, p)) for p in ((0.05, 0.1), None, (0.8, 0.9)))
    assert (rare.prevalence, even.prevalence, common.prevalence) == (0.1, 0.5, 0.8)
    assert rare.threshold > even.threshold > common.threshold


@pytest.mark.parametrize("floor", [0.9, 0.95, 0.99, 1.0])
def test_the_sensitivity_that_was_asked_for_holds(floor):
    z, truth = drawn(60, 60, (-1, 2)), labels(60, 60)
    free, held = fit_labelled(z, truth, WISH), fit_labelled(z, truth, Wish(0.0, sensitivity=floor))
    assert rates(z, truth, free.threshold)[0] < 1
    assert rates(z, truth, held.threshold)[0] >= floor
    assert held.threshold <= free.threshold


@pytest.mark.parametrize("counts", [(29, 60), (60, 29), (60, 0)])
def test_few_labels_or_one_class_are_refused(counts):
    with pytest.raises(CalibrationError, match=f"found {min(counts)} labelled images of .*, expected 30"):
        fit_labelled(drawn(*counts), labels(*counts), WISH)


def test_classes_that_the_network_does_not_tell_apart_are_refused():
    z = np.random.default_rng(0).normal(size=80)
    with pytest.raises(CalibrationError, match=r"AUC of 0\.\d\d .* expected 0\.8"):
        fit_labelled(z, labels(40, 40), WISH)


def test_log_odds_are_finite():
    assert to_log_odds(0.5) == 0 and np.isfinite([to_log_odds(0.0), to_log_odds(1.0)]).all()

"""Distances from the reference, their p-values, and the share of pneumonia."""

import numpy as np
import pytest
from scipy.stats import ks_1samp

from cxr_edge.common import drift
from cxr_edge.common.reference import Measured, reference_of
from cxr_edge.sites.monitoring.monitor import FALSE_ALARMS, p_values


def numbers(random, size, shift=0.0, sick=0.7, novelty=0.0):
    labels = (random.random(size) < sick).astype(int)
    evidence = np.where((labels == 1) | (random.random(size) < 0.2), random.beta(30, 0.5, size), np.nan)
    logit = random.normal(np.where(labels, 6.0, -6.0) + shift, 2.0)
    return labels, Measured(logit, random.gamma(20, 0.12, size) + novelty, evidence, random.random(size) < 0.99)


LABELS, FOUND = numbers(np.random.default_rng(7), 600)
REFERENCE = reference_of(FOUND, LABELS, [f"p{n}" for n in range(600)], 5.0, "hold-out")


def alarms(windows, size=200, **shift):
    random, count = np.random.default_rng(1), 0
    for _ in range(windows):
        values = p_values(numbers(random, size, **shift)[1], 5.0, REFERENCE, (0.0, 1.0))
        count += min(values.values()) <= FALSE_ALARMS / len(values)
    return count


def test_ks_is_that_of_scipy():
    values = numbers(np.random.default_rng(3), 150)[1].novelty
    expected = drift.mixture(REFERENCE, "novelty", 0.4)
    assert drift.ks_distance(values, expected) == pytest.approx(ks_1samp(values, expected.cdf).statistic, abs=1e-12)


def test_equal_values_count_on_both_sides():
    half = np.array([0.0] * 51 + [1.0] * 50)
    mixture = drift.Mixture((half, None), (1.0, 0.0))
    assert mixture.cdf(np.array([0.0]))[0] == pytest.approx(0.5) and mixture.below(np.array([0.0]))[0] == 0
    assert drift.ks_distance(np.array([0.0, 1.0]), mixture) == pytest.approx(0.0, abs=0.02)
    assert drift.ks_distance(np.array([0.0, 0.0]), mixture) == pytest.approx(0.5, abs=0.02)
    assert np.isfinite(drift.stability_index(np.array([0.0, 1.0, 1.0]), mixture))


def test_the_stability_index_grows_with_a_shift():
    values = numbers(np.random.default_rng(4), 2000)[1].logit
    mixture = drift.mixture(REFERENCE, "logit", 0.7)
    near, moved, far = (drift.stability_index(values + shift, mixture) for shift in (0.0, 1.0, 3.0))
    assert near < 0.05 < moved < far


@pytest.mark.parametrize("sick", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_the_share_of_pneumonia_is_found(sick):
    labels, window = numbers(np.random.default_rng(5), 400, sick=sick)
    assert drift.share_of_pneumonia(window.logit, REFERENCE) == pytest.approx(labels.mean(), abs=0.06)
    assert 0.4 <= drift.share_of_pneumonia(window.logit, REFERENCE, (0.4, 0.6)) <= 0.6
    assert drift.share_of_pneumonia(window.logit, REFERENCE, (0.333, 0.333)) == pytest.approx(0.333)


@pytest.mark.slow
@pytest.mark.parametrize("sick", [0.1, 0.7])
def test_another_share_of_pneumonia_is_no_alarm(sick):
    assert alarms(100, sick=sick) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shift", [{"shift": 2.0}, {"novelty": 0.5}, {"shift": -2.5, "sick": 0.2}])
def test_a_shift_is_an_alarm(shift):
    assert alarms(20, **shift) >= 19


def test_the_p_value_of_a_share_grows_as_the_reference_shrinks():
    few = reference_of(FOUND.take(np.arange(60)), LABELS[:60], [f"p{n}" for n in range(60)], 5.0, "hold-out")
    many = drift.share_p_value(12, 200, REFERENCE, "lungs_missed", 0.7)
    assert many < drift.share_p_value(12, 200, few, "lungs_missed", 0.7)
    assert drift.share_p_value(0, 200, REFERENCE, "lungs_missed", 0.7) == 1.0


def test_without_lungs_three_numbers_are_compared():
    plain = Measured(FOUND.logit, FOUND.novelty)
    reference = reference_of(plain, LABELS, [f"p{n}" for n in range(600)], 5.0, "hold-out")
    assert set(p_values(plain.take(np.arange(200)), 5.0, reference, (0.0, 1.0))) == {"logit", "novelty", "novel"}


def test_intervals_are_ordered_and_reach_the_measured_distance():
    window = numbers(np.random.default_rng(6), 200, shift=1.5)[1]
    _, found = drift.distances(window, REFERENCE)
    for name, (low, high) in drift.intervals(window, REFERENCE, (0.0, 1.0)).items():
        assert low.ks <= high.ks and low.psi <= high.psi
        assert found[name].ks <= high.ks

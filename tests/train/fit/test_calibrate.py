import numpy as np
import pytest

from cxr_edge.common.statistics import to_probability
from cxr_edge.train.fit.calibrate import (
    TARGET,
    fit_temperature,
    operating_points,
)


def scored(count: int = 4000, seed: int = 0):
    """Labels drawn with the probability that the logit says, so that the right temperature is 1."""
    random = np.random.default_rng(seed)
    logit = random.normal(0.5, 2.5, count)
    return (random.random(count) < 1 / (1 + np.exp(-logit))).astype(np.int64), logit


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature):
    labels, logit = scored()
    assert fit_temperature(labels, temperature * logit) == pytest.approx(temperature, rel=0.06)


def test_temperature_lowers_the_likelihood_loss():
    labels, logit = scored()
    logit = 3 * logit

    def loss(temperature: float) -> float:
        said = to_probability(logit, temperature).astype(np.float64)
        return float(-np.log(np.where(labels == 1, said, 1 - said).clip(1e-12)).mean())

    best = fit_temperature(labels, logit)
    assert loss(best) < loss(1.0) and loss(best) <= min(loss(0.9 * best), loss(1.1 * best))


def test_a_network_without_errors_gives_no_temperature():
    assert fit_temperature(np.array([0, 0, 1, 1]), np.array([-3.0, -0.1, 0.2, 5.0])) == 1.0


def test_probability_is_what_the_graph_gives():
    probability = to_probability(np.array([-200.0, 0.0, 2.0, 200.0], np.float32), 2.0)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, [0, 0.5, 1 / (1 + np.exp(-1)), 1], rtol=1e-6, atol=1e-30)


def test_a_threshold_leaves_room_on_both_sides():
    for point in operating_points(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.7, 0.9])):
        assert point.threshold == pytest.approx(0.5)


def at(labels, probability, threshold):
    """Sensitivity and specificity."""
    positive = probability >= threshold
    return positive[labels == 1].mean(), (~positive[labels == 0]).mean()


@pytest.mark.parametrize("seed", range(5))
def test_points_hold_what_they_promise_and_no_neighbour_does_better(seed):
    labels, logit = scored(500, seed)
    probability = to_probability(logit, 1.0)
    _, screening, confirm, _ = points = operating_points(labels, probability)
    assert [point.name for point in points] == ["balanced", "screening", "confirm", "triage"]
    assert at(labels, probability, screening.threshold)[0] >= TARGET
    assert at(labels, probability, confirm.threshold)[1] >= TARGET
    candidates = np.append(np.unique(probability), 2)
    for candidate in candidates:
        sensitivity, specificity = at(labels, probability, candidate)
        assert candidate <= next(c for c in candidates if c >= screening.threshold) or sensitivity < TARGET
        assert candidate >= confirm.threshold or specificity < TARGET


@pytest.mark.parametrize("gap", [9.0, 1.0, 0.0])
def test_balanced_leans_to_neither_error(gap):
    labels, logit = scored(500)
    versions = [to_probability(logit + gap * labels + shift, 1.0) for shift in (0, 0.7, -0.4)]
    point = operating_points(labels, *versions)[0]

    def worst(threshold):
        return min(min(at(labels, version, threshold)) for version in versions)

    found = worst(point.threshold)
    assert all(worst(candidate) <= found + 1e-12 for candidate in np.unique(np.concatenate(versions)))
    assert "lesser of sensitivity and specificity" in point.chosen


def test_balanced_takes_the_middle_of_equally_good_thresholds():
    labels = np.array([0] * 10 + [1] * 10)
    # One pneumonia lies below all normal images: from 0.3 to 0.7 the worst error rate is the same.
    probability = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3] + [0.01] + [0.7] * 5 + [0.9] * 4)
    assert operating_points(labels, probability)[0].threshold == pytest.approx(0.5)
    # With a normal image between, the lesser rate is the same below it, but the other rate is not.
    probability[9] = 0.6
    assert operating_points(labels, probability)[0].threshold == pytest.approx(0.65)


def test_triage_lies_between_screening_and_confirm():
    labels, logit = scored(2000)
    probability = to_probability(logit, 1.0)
    _, screening, confirm, triage = operating_points(labels, probability)
    assert screening.threshold < confirm.threshold
    assert triage.thresholds == (screening.threshold, confirm.threshold)
    assert "below the threshold of screening, PNEUMONIA from that of confirm" in triage.chosen
    answer = triage.answer(probability)
    assert set(answer.tolist()) == {0, 1, 2}
    assert (answer[labels == 1] == 0).mean() <= 1 - TARGET and (answer[labels == 0] == 2).mean() <= 1 - TARGET


def test_triage_of_a_strong_network_exchanges_both_thresholds():
    labels = np.array([0] * 100 + [1] * 100)
    probability = np.concatenate([np.linspace(0.1, 0.4, 99), [0.9], np.linspace(0.6, 0.95, 99), [0.2]])
    _, screening, confirm, triage = operating_points(labels, probability)
    assert screening.threshold > confirm.threshold
    assert triage.thresholds == (confirm.threshold, screening.threshold)
    answer = triage.answer(probability)
    assert (answer[labels == 1] == 0).mean() <= 1 - TARGET and (answer[labels == 0] == 2).mean() <= 1 - TARGET


def test_points_lie_between_neighbours_not_on_one():
    labels, logit = scored(300)
    probability = to_probability(logit, 1.0)
    for point in operating_points(labels, probability):
        assert point.threshold not in probability
        assert point.name == "triage" or "held-out patients" in point.chosen


def test_a_healthy_patient_at_the_top_leaves_a_threshold_that_nobody_reaches():
    labels, probability = np.array([1, 1, 0]), np.array([0.2, 0.4, 1.0], np.float32)
    _, screening, confirm, _ = operating_points(labels, probability)
    assert np.isfinite(confirm.threshold) and not (probability >= confirm.threshold).any()
    assert (probability >= screening.threshold)[labels == 1].all()


def test_the_worst_version_of_the_images_decides():
    labels = np.array([0, 0, 0, 1, 1, 1])
    as_they_are = np.array([0.1, 0.15, 0.2, 0.5, 0.8, 0.9])
    darker = as_they_are - 0.1  # where 0.35 + 0.1 would miss one of the sick
    alone, together = operating_points(labels, as_they_are)[0], operating_points(labels, as_they_are, darker)[0]
    assert alone.threshold == pytest.approx(0.35)
    assert 0.2 < together.threshold < 0.4
    assert "worst of 2 versions" in together.chosen
    for version in (as_they_are, darker):
        assert at(labels, version, together.threshold) == (1, 1)

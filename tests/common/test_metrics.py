import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from support import needs_native_speed

from cxr_edge.common.metrics import (
    Cases,
    Estimate,
    _weighted_decisions,
    _weighted_scores,
    calibration,
    classification_report,
    confusion,
    decision_metrics,
    mean_over_images,
    patient_weights,
    rank_index,
    reliability,
    score_metrics,
    triage_metrics,
)
from cxr_edge.common.statistics import calibration_error, equal_width_bins, to_probability
from cxr_edge.runtime.bundles.bundle import OperatingPoint


def some_cases(count: int = 200, seed: int = 0) -> Cases:
    """Scores that overlap, with ties, of patients who have one to many images."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    logit = np.round(random.normal(2 * labels - 1, 1.5), 1)
    patients = np.array(
        [f"{label}-{n}" for label, n in zip(labels, random.integers(0, count // 3, count), strict=True)]
    )
    return Cases(labels, logit, to_probability(logit, 1.0), patients)


def test_figures_are_those_of_scikit_learn():
    cases, threshold = some_cases(), 0.4
    decided = cases.probability >= threshold
    values = {name: e.value for name, e in (decision_metrics(cases, threshold, 10) | score_metrics(cases, 10)).items()}
    for name, index in (("ece", equal_width_bins), ("ece_equal_mass", rank_index)):
        expected = calibration_error(cases.labels, cases.probability, index(cases.probability))
        assert values.pop(name) == pytest.approx(expected)
    assert values == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(cases.labels, decided),
            "precision": sklearn_metrics.precision_score(cases.labels, decided),
            "sensitivity": sklearn_metrics.recall_score(cases.labels, decided),
            "specificity": sklearn_metrics.recall_score(1 - cases.labels, ~decided),
            "f1": sklearn_metrics.f1_score(cases.labels, decided),
            "roc_auc": sklearn_metrics.roc_auc_score(cases.labels, cases.logit),
            "pr_auc": sklearn_metrics.average_precision_score(cases.labels, cases.logit),
            "brier": np.mean((cases.probability - cases.labels) ** 2),
        }
    )


def test_each_resample_is_measured_as_scikit_learn_would():
    cases = some_cases()
    decided = (cases.probability >= 0.4).astype(np.int64)
    weights = next(patient_weights(cases.patients, 5, seed=1))
    found = _weighted_scores(cases, weights) | _weighted_decisions(cases.labels, decided, weights)
    for row, weight in enumerate(weights):
        expected = {
            "roc_auc": sklearn_metrics.roc_auc_score(cases.labels, cases.logit, sample_weight=weight),
            "pr_auc": sklearn_metrics.average_precision_score(cases.labels, cases.logit, sample_weight=weight),
            "brier": sklearn_metrics.brier_score_loss(cases.labels, cases.probability, sample_weight=weight),
            "accuracy": sklearn_metrics.accuracy_score(cases.labels, decided, sample_weight=weight),
            "precision": sklearn_metrics.precision_score(cases.labels, decided, sample_weight=weight),
            "sensitivity": sklearn_metrics.recall_score(cases.labels, decided, sample_weight=weight),
            "specificity": sklearn_metrics.recall_score(cases.labels, decided, pos_label=0, sample_weight=weight),
            "f1": sklearn_metrics.f1_score(cases.labels, decided, sample_weight=weight),
        }
        assert {name: found[name][row] for name in expected} == pytest.approx(expected)
        repeated = np.repeat(np.arange(len(weight)), weight.astype(int))
        for name, index in (("ece", equal_width_bins), ("ece_equal_mass", rank_index)):
            bins = index(cases.probability)[repeated]
            expected = calibration_error(cases.labels[repeated], cases.probability[repeated], bins)
            assert found[name][row] == pytest.approx(expected)


def test_bins_of_equal_mass_hold_as_many_images_whatever_their_probabilities():
    probability = np.random.default_rng(0).beta(0.1, 0.1, 300)
    index = rank_index(probability)
    assert np.bincount(index).tolist() == [20] * 15
    assert probability[index == 3].max() <= probability[index == 4].min()


def test_reliability_counts_every_image_once():
    cases = some_cases()
    bins = reliability(cases)
    assert sum(each.images for each in bins) == len(cases.labels)
    assert all(each.low <= each.said < each.high for each in bins if each.images)
    gaps = sum(each.images * abs(each.said - each.found) for each in bins if each.images) / len(cases.labels)
    assert gaps == pytest.approx(
        calibration_error(cases.labels, cases.probability, equal_width_bins(cases.probability))
    )
    alone = Cases(np.array([1]), np.array([9.0]), np.array([1.0]), np.array(["a"]))
    assert [each.images for each in reliability(alone)] == [0] * 14 + [1]


def test_classification_report_is_that_of_scikit_learn():
    cases, threshold = some_cases(), 0.4
    expected = sklearn_metrics.classification_report(
        cases.labels, cases.probability >= threshold, target_names=["NORMAL", "PNEUMONIA"], output_dict=True
    )
    found = classification_report(cases, threshold, 100)
    assert list(found) == ["NORMAL", "PNEUMONIA", "macro average"]
    for row, name in zip(found, ("NORMAL", "PNEUMONIA", "macro avg"), strict=True):
        for figure, estimate in found[row].items():
            assert estimate.value == pytest.approx(expected[name][figure.replace("f1", "f1-score")])
            assert estimate.low < estimate.value < estimate.high


def test_a_mean_over_images_respects_patients():
    values = np.array([0.0, 0.0, 0.0, 1.0])
    clustered = mean_over_images(values, np.array(["a", "a", "a", "b"]))
    assert (clustered.value, clustered.low, clustered.high) == (0.25, 0.0, 1.0)
    apart = mean_over_images(values, np.array(["a", "b", "c", "d"]))
    assert apart.value == 0.25 and apart.high < 1
    assert mean_over_images(np.array([]), np.array([], str)).value is None


def test_images_of_a_patient_are_drawn_together():
    patients = np.array(["a", "b", "a", "c", "b", "a"])
    weights = np.concatenate(list(patient_weights(patients, 250, seed=0)))
    assert weights.shape == (250, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    assert len(np.unique(weights, axis=0)) == 10  # all ways to draw 3 of 3 with replacement


def test_more_images_of_the_same_patients_are_no_new_evidence():
    one = some_cases(150)
    five = Cases(*(np.tile(values, 5) for values in (one.labels, one.logit, one.probability, one.patients)))
    apart = Cases(five.labels, five.logit, five.probability, np.arange(len(five.labels)).astype(str))
    for measure in (score_metrics, lambda cases: decision_metrics(cases, 0.5)):
        alone, repeated, wrongly = measure(one), measure(five), measure(apart)
        for name in alone:
            width = {key: e[name].high - e[name].low for key, e in enumerate((alone, repeated, wrongly))}
            assert width[1] >= 0.95 * width[0], name  # bins of equal mass part ties
            assert width[2] < 0.75 * width[0], name  # which a bootstrap over images would have taken for evidence


def test_the_interval_holds_the_figure_and_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = np.arange(400) % 2
        decided_right = random.random(400) < 0.9
        probability = np.where(decided_right == (labels == 1), 0.9, 0.1)
        cases = Cases(labels, probability, probability, np.arange(400).astype(str))
        accuracy = decision_metrics(cases, 0.5, 300)["accuracy"]
        assert accuracy.low < accuracy.value < accuracy.high
        covered += accuracy.low <= 0.9 <= accuracy.high
    assert 50 <= covered <= 60


def test_what_is_not_defined_is_none():
    cases = Cases(np.array([0, 1]), np.array([-1.0, 1.0]), np.array([0.3, 0.7]), np.array(["a", "b"]))
    found = decision_metrics(cases, 0.9)
    assert found["precision"].value is None and found["precision"].low is None
    assert found["sensitivity"].value == 0 and found["specificity"].value == 1


def test_confusion_counts_by_truth():
    probability = np.array([0.1, 0.8, 0.2, 0.3, 0.5])
    counted = confusion(Cases(np.array([0, 0, 1, 1, 1]), probability, probability, np.array(list("abcde"))), 0.5)
    assert (counted.true_negative, counted.false_positive) == (1, 1)
    assert (counted.false_negative, counted.true_positive) == (2, 1)


@needs_native_speed
def test_five_thousand_images_take_seconds():
    cases = some_cases(5000)
    start = time.process_time()
    score_metrics(cases)
    decision_metrics(cases, 0.5)
    assert time.process_time() - start < 20


def test_calibration_is_that_of_all_scores():
    cases = some_cases()
    assert calibration(cases) == score_metrics(cases)["ece"]


def test_triage_counts_what_it_leaves_open_and_what_it_gets_wrong():
    cases = some_cases(400)
    point = OperatingPoint("triage", 0.7, "by hand", rule_out=0.2)
    found = triage_metrics(cases, point, 50)
    out, ruled_in = cases.probability < 0.2, cases.probability >= 0.7
    assert found.unsure.value == pytest.approx((~out & ~ruled_in).mean())
    assert found.missed.value == pytest.approx(cases.labels[out].mean())
    assert found.false_alarms.value == pytest.approx(1 - cases.labels[ruled_in].mean())
    for estimate in (found.unsure, found.missed, found.false_alarms):
        assert 0 < estimate.value < 1 and estimate.low <= estimate.value <= estimate.high


def test_triage_that_answers_nothing_has_no_errors():
    cases = some_cases()
    found = triage_metrics(cases, OperatingPoint("triage", 1.0, "by hand", rule_out=0.0), 50)
    assert found.unsure.value == 1
    assert found.missed == found.false_alarms == Estimate(None, None, None)
    nobody = cases.only(np.zeros(len(cases.labels), bool))
    assert set(decision_metrics(nobody, 0.5, 50).values()) == {Estimate(None, None, None)}

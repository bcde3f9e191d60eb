"""AUC, calibration error and rank correlation, against scikit-learn, SciPy and by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from cxr_edge.common.statistics import BINS, calibration_error, equal_width_bins, rank_correlations, roc_auc


def test_auc_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    logit = random.normal(0, 3, 400).astype(np.float32)
    labels = (logit + random.normal(0, 2, 400) > 0).astype(np.int64)
    ties = logit.round()
    for score in (logit, ties):
        assert roc_auc(labels, score) == pytest.approx(roc_auc_score(labels, score))
    assert np.isnan(roc_auc(np.ones(3, np.int64), ties[:3]))


def test_calibration_error_by_hand():
    labels, probability = np.array([0, 1, 1, 1]), np.array([0.2, 0.21, 0.9, 1.0])
    # Bins of 1/15: 0.2 and 0.21 share one, with mean 0.205 and half sick; 0.9 and 1.0 have bins of their own.
    error = calibration_error(labels, probability, equal_width_bins(probability))
    assert error == pytest.approx((2 * (0.5 - 0.205) + 0.1 + 0) / 4)


def test_calibration_error_of_a_calibrated_and_of_a_constant_forecast():
    random = np.random.default_rng(0)
    probability = random.uniform(0, 1, 20_000)
    labels = (random.uniform(0, 1, 20_000) < probability).astype(np.int64)
    assert calibration_error(labels, probability) < 0.02
    assert calibration_error(labels, np.full(20_000, 0.9)) == pytest.approx(0.9 - labels.mean(), abs=1e-9)


def test_rank_correlation_is_that_of_scipy():
    one, other = np.random.default_rng(0).random((2, 5, 7, 7)).astype(np.float32)
    one[one < 0.4] = 0  # as ReLU leaves ties
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlations(one, other), expected)
    assert np.isnan(rank_correlations(one, np.ones_like(one))).all()
    np.testing.assert_allclose(rank_correlations(one, 3 * one), 1)


def test_equal_bins_hold_both_ends_and_no_number_falls_out():
    edges = np.array([0.0, 1 / BINS - 1e-9, 1 / BINS + 1e-9, 1.0, np.nan])
    np.testing.assert_array_equal(equal_width_bins(edges), [0, 0, 1, BINS - 1, 0])

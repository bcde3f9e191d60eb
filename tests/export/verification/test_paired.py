import numpy as np
import pytest

from cxr_edge.common.statistics import roc_auc
from cxr_edge.export.verification.paired import brier, delong, mcnemar


def scores(seed, correlation=0.9, count=80):
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % 3 == 0).astype(np.int64)
    shared, own = random.normal(0, 1, count), random.normal(0, 1, (2, count))
    return labels, *(labels + correlation * shared + np.sqrt(1 - correlation**2) * own)


def test_mcnemar_is_the_binomial_test_on_discordant_pairs():
    labels = np.ones(100, np.int64)
    decided, expected = np.ones(100, bool), np.ones(100, bool)
    decided[:15] = False
    expected[15:20] = False
    # Two-sided sign test of 5 against 15: 2 · Σ C(20, k ≤ 5) / 2^20.
    assert mcnemar(labels, decided, expected) == pytest.approx(2 * 21700 / 2**20)
    assert mcnemar(labels, expected, expected) == 1
    flipped_alike = ~decided  # on the other class the same decisions are wrong the other way round
    assert mcnemar(1 - labels, flipped_alike, ~expected) == mcnemar(labels, decided, expected)


def test_delong_is_the_definition():
    from scipy.stats import norm

    labels, *pair = scores(3)
    pair = [np.round(score, 1) for score in pair]  # ties
    kernels = []
    for score in pair:
        sick, healthy = score[labels == 1][:, np.newaxis], score[labels == 0]
        kernels.append((sick > healthy) + 0.5 * (sick == healthy))
    sick_parts, healthy_parts = [k.mean(axis=1) for k in kernels], [k.mean(axis=0) for k in kernels]
    covariance = np.cov(sick_parts) / len(sick_parts[0]) + np.cov(healthy_parts) / len(healthy_parts[0])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (roc_auc(labels, pair[0]) - roc_auc(labels, pair[1])) / np.sqrt(variance)
    assert delong(labels, *pair) == pytest.approx(2 * norm.sf(abs(z)))


@pytest.mark.slow
def test_delong_errs_as_often_as_it_says():
    p = np.array([delong(*scores(seed)) for seed in range(400)])
    assert 0.02 < np.mean(p < 0.05) < 0.09
    worse = np.array([delong(labels, a, b - 1.5 * labels) for labels, a, b in map(scores, range(50))])
    assert worse.max() < 1e-3


def test_equal_scores_and_single_classes():
    labels, score, _ = scores(0)
    assert delong(labels, score, score) == 1
    assert np.isnan(delong(np.ones_like(labels), score, score))


def test_brier_is_scikit_learns():
    from sklearn.metrics import brier_score_loss

    labels, score, _ = scores(1)
    probability = 1 / (1 + np.exp(-score))
    assert brier(labels, probability) == pytest.approx(brier_score_loss(labels, probability))

import numpy as np
import pytest

from cxr_edge.common.statistics import calibration_error, roc_auc, to_probability
from cxr_edge.train.evaluation.crossfit import FIGURES, leave_clusters_out, worst_of
from cxr_edge.train.fit.calibrate import fit_temperature, operating_points


@pytest.fixture
def seen():
    """Labels, two versions of logits, patients and clusters; the second cluster scores too high."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 600)
    clusters = random.integers(0, 3, 600)
    logit = random.normal(6 * labels - 3, 2) + 4 * (clusters == 1)
    patients = np.array([f"patient {n}" for n in random.integers(0, 200, 600)])
    return labels, [logit, logit - 0.5], patients, clusters


def test_temperature_and_threshold_are_those_of_the_others(seen):
    labels, versions, _, clusters = seen
    found = leave_clusters_out(*seen)
    assert [each.cluster for each in found] == [0, 1, 2]
    for each in found:
        inside = clusters == each.cluster
        others = [logit[~inside] for logit in versions]
        assert each.temperature == fit_temperature(labels[~inside], others[0])
        point = operating_points(labels[~inside], *(to_probability(logit, each.temperature) for logit in others))[0]
        assert each.threshold == point.threshold
        probability = to_probability(versions[0][inside], each.temperature)
        truth = labels[inside]
        assert (each.images, each.pneumonia) == (inside.sum(), truth.sum())
        values = {name: estimate.value for name, estimate in each.metrics.items()}
        assert values == pytest.approx(
            {
                "roc_auc": roc_auc(truth, versions[0][inside]),
                "ece": calibration_error(truth, probability),
                "sensitivity": (probability[truth == 1] >= point.threshold).mean(),
                "specificity": (probability[truth == 0] < point.threshold).mean(),
            }
        )
        assert all(estimate.low <= estimate.value <= estimate.high for estimate in each.metrics.values())


def test_a_cluster_that_scores_too_high_is_the_worst(seen):
    found = leave_clusters_out(*seen)
    assert worst_of(found, "specificity").cluster == worst_of(found, "ece").cluster == 1
    assert worst_of(found, "sensitivity").cluster != 1
    assert set(found[0].metrics) == set(FIGURES)


def test_one_cluster_cannot_be_left_out(seen):
    labels, versions, patients, clusters = seen
    assert leave_clusters_out(labels, versions, patients, np.zeros_like(clusters)) == ()

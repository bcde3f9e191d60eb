"""The reference of a model: distributions of what the runtime would say."""

from dataclasses import asdict

import numpy as np
import pytest

from cxr_edge.common.reference import Measured, measure, reference_of
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.explanation.lungs import evidence_inside, find_lungs

GEOMETRY, CONTRACT = HeatmapGeometry(32.0, 15.5), InputContract()


def test_each_class_has_its_own_distributions():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 500])
    logit = random.normal(np.where(labels, 5.0, -5.0), 1.0)
    novelty = random.uniform(0, 10, 800)
    evidence = np.where(random.random(800) < 0.5, np.nan, random.uniform(0.5, 1, 800))
    patients = [f"{label}-{n // 2}" for n, label in enumerate(labels)]
    found = Measured(logit, novelty, evidence, random.random(800) < 0.9)
    reference = reference_of(found, labels, patients, 9.0, "hold-out")
    for label, each in enumerate(reference.classes):
        rows = labels == label
        assert (each.images, each.patients) == (rows.sum(), rows.sum() // 2)
        assert each.logit == pytest.approx(np.quantile(logit[rows], np.linspace(0, 1, 101)), rel=1e-3)
        assert each.novel == np.sum(novelty[rows] > 9)
        assert each.with_evidence == np.sum(~np.isnan(evidence[rows]))
        assert each.evidence_in_lungs[50] == pytest.approx(np.nanmedian(evidence[rows]), rel=1e-3)
        assert each.lungs_missed == np.sum(~found.whole_lungs[rows])
        assert all(len(f"{abs(value):.10g}".replace(".", "").lstrip("0")) <= 4 for value in each.logit)


def test_without_lungs_there_is_no_evidence():
    found = measure(outputs(lungs=None), GEOMETRY, CONTRACT)
    reference = reference_of(found, np.array([0, 1]), ["a", "b"], 1.0, "validation")
    assert [(c.evidence_in_lungs, c.with_evidence, c.lungs_missed) for c in reference.classes] == [(None, 0, None)] * 2
    assert asdict(reference)["part"] == "validation"


def test_lungs_and_evidence_are_those_of_the_runtime():
    lungs = np.zeros((2, 28, 28), np.float32)
    lungs[0, 6:22, 4:12] = lungs[0, 6:22, 16:24] = lungs[1, 6:22, 4:12] = 0.9
    given = outputs(lungs)
    found = measure(given, GEOMETRY, CONTRACT)
    assert found.whole_lungs.tolist() == [True, False]
    hull = find_lungs(lungs[0]).hull
    assert found.evidence[0] == evidence_inside(given.heatmap[0], hull, GEOMETRY, CONTRACT)
    assert np.isnan(found.evidence[1])  # the heatmap is empty


def outputs(lungs):
    heatmap = np.random.default_rng(1).random((2, 7, 7), np.float32)
    heatmap[1] = 0
    numbers = np.array([0.5, 2.0], np.float32)
    return Outputs(numbers, numbers, heatmap, numbers, None, lungs)

"""The thresholds of a run hold on its validation images as they are and under every perturbation."""

import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.common.statistics import to_probability
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.fit.calibrate import TARGET, operating_points


@pytest.fixture(scope="module")
def validation(run, phantoms):
    """Of the validation images: labels (N,), and probabilities (versions, N), the images as they are first."""
    opened = Run.open(run)
    images = [image for image in read_dataset(phantoms, ("train",)) if image.key in opened.validation_files]
    network, pixels = opened.network(), read_pixels(images)
    versions = [pixels, *(perturb(pixels, change) for change in PERTURBATIONS.values())]
    logits = [network.predict(version, batch_size=64, verbose=0)[:, 0] for version in versions]
    labels = np.array([image.label for image in images])
    return labels, np.array([to_probability(logit, opened.temperature) for logit in logits])


def test_they_are_those_of_the_worst_version(run, validation):
    labels, versions = validation
    found = Run.open(run).operating_points
    for point, expected, alone in zip(
        found, operating_points(labels, *versions), operating_points(labels, versions[0]), strict=True
    ):
        assert (point.name, point.chosen) == (expected.name, expected.chosen)
        assert point.name == "triage" or f"worst of {len(PERTURBATIONS) + 1} versions" in point.chosen
        assert point.threshold == pytest.approx(expected.threshold, abs=1e-5)
        # On these images the perturbations matter: thresholds chosen without them are others.
        if point.name in ("screening", "confirm"):
            assert abs(point.threshold - alone.threshold) > 1e-3


def test_every_version_holds_what_screening_and_confirm_promise(run, validation):
    labels, versions = validation
    _, screening, confirm, triage = Run.open(run).operating_points
    for probability in versions:
        assert (probability[labels == 1] >= screening.threshold).mean() >= TARGET
        assert (probability[labels == 0] < confirm.threshold).mean() >= TARGET
        assert (triage.answer(probability[labels == 1]) == 0).mean() <= 1 - TARGET
        assert (triage.answer(probability[labels == 0]) == 2).mean() <= 1 - TARGET

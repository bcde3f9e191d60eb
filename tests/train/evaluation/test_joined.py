import numpy as np
import pytest

from cxr_edge.common.metrics import Cases
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.train.evaluation.joined import measure_joined
from cxr_edge.train.evaluation.subject import Subject

SIZE, CELLS = 64, 8


def follows(pixels):
    """Evidence where an image is bright."""
    return pixels.reshape(len(pixels), CELLS, 8, CELLS, 8).mean(axis=(2, 4)) / 255


def always_right(pixels):
    """As much evidence, but always at the same place."""
    heatmap = np.zeros((len(pixels), CELLS, CELLS))
    heatmap[:, 3, 6] = follows(pixels).sum(axis=(1, 2))
    return heatmap


def subject(heatmap_of):
    def run(pixels):
        heatmap = heatmap_of(pixels.astype(float)).astype(np.float32)
        logit = heatmap.sum(axis=(1, 2)) - 1
        return Outputs(1 / (1 + np.exp(-logit)), logit, heatmap, np.zeros(len(pixels), np.float32))

    return Subject(
        path="", name="", backend="", input=InputContract(SIZE, SIZE), heatmap=HeatmapGeometry(8.0, 3.5),
        operating_points=(OperatingPoint("balanced", 0.5, ""),), temperature=1.0, novelty_threshold=1.0,
        trained_on=None, trained=None, network=None, _runner=run,
    )  # fmt: skip


@pytest.fixture
def radiographs():
    """Six normal ones, which are dark, and six with a bright spot in each lung; lungs and their masks."""
    lungs = np.zeros((12, SIZE, SIZE), bool)
    lungs[:, 16:48, 8:24] = lungs[:, 16:48, 40:56] = True
    pixels = np.zeros((12, SIZE, SIZE, 1), np.uint8)
    pixels[6:, 24:40, 8:24] = pixels[6:, 24:40, 40:56] = 255
    labels = np.repeat([0, 1], 6)
    return pixels, labels, lungs


def measured(heatmap_of, radiographs):
    pixels, labels, lungs = radiographs
    model = subject(heatmap_of)
    outputs = model.run(pixels)
    cases = Cases(labels, outputs.logit, outputs.probability, np.array([f"p{n}" for n in range(12)]))
    return measure_joined(model, pixels, cases, lungs)


def test_evidence_that_follows_the_pneumonia_is_on_its_side(radiographs):
    left, right, neither = measured(follows, radiographs)
    assert [left.pneumonia, right.pneumonia, neither.pneumonia] == ["left", "right", "neither"]
    for each in (left, right):
        assert each.images == 6 and each.empty == 0 and each.called.value == each.most.value == 1
        assert each.evidence.value > 0.95
    assert neither.called.value == 0 and neither.empty == 6 and neither.most.value is None


def test_evidence_that_stays_at_one_place_is_told(radiographs):
    left, right, _ = measured(always_right, radiographs)
    assert right.evidence.value > 0.95 and right.most.value == 1
    assert left.evidence.value < 0.05 and left.most.value == 0


def test_nothing_is_joined_if_no_pneumonia_was_found(radiographs):
    pixels, labels, lungs = radiographs
    assert measured(follows, (np.zeros_like(pixels), labels, lungs)) == ()

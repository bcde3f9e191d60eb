import cv2
import numpy as np
import pytest
from support import SHARED, needs_shared

from cxr_edge.runtime import load
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.train.fit.novelty import DIRECTIONS, fit_novelty


def photographs():
    """Pieces of scikit-learn's two photographs, as grayscale."""
    from sklearn.datasets import load_sample_images

    for image in load_sample_images().images:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        yield from (gray[y : y + 220, x : x + 300] for y in (0, 100, 200) for x in (0, 150, 300))


def test_what_is_no_radiograph_is_flagged_by_the_packaged_model():
    random = np.random.default_rng(0)
    blanks = [np.full((300, 300), level, np.uint8) for level in (0, 40, 128, 200, 255)]
    ramps = [np.tile(np.linspace(0, 255, 300).astype(np.uint8), (300, 1))]
    noise = [random.integers(0, 256, (300, 300), dtype=np.uint8) for _ in range(3)]
    images = [*photographs(), *blanks, *ramps, *ramps[0].T[None], *noise]
    familiar = [p.in_distribution for p in load().predict_many(images)]
    assert np.mean(familiar) <= 0.05


def test_fitting_finds_the_directions_and_the_share_that_is_familiar():
    random = np.random.default_rng(0)
    within = random.normal(0, 10, (500, DIRECTIONS)) @ np.eye(DIRECTIONS, 40)
    features = (within + random.normal(0, 0.5, (500, 40))).astype(np.float32)
    # Within the main directions, where the residual sees nothing.
    outliers = features[:50] + np.eye(1, 40, 3, dtype=np.float32) * 60
    novelty = fit_novelty(features[:400], [features[400:]], {"moved": outliers})
    distances = novelty.of(features[400:])
    assert np.mean(distances <= novelty.threshold) == pytest.approx(0.99)
    stranger = features[:1] + np.eye(1, 40, 35, dtype=np.float32) * 10
    assert novelty.of(stranger)[0] > 2 * novelty.threshold
    moved_too = features[450:] + np.eye(1, 40, 3, dtype=np.float32) * 60
    assert np.mean(novelty.of(moved_too) > novelty.threshold) > 0.95


def test_outliers_that_look_like_radiographs_do_not_count():
    features = np.random.default_rng(0).normal(0, 1, (400, 40)).astype(np.float32)
    novelty = fit_novelty(features[:200], [features[200:300]], {"the same": features[300:]})
    assert np.mean(novelty.of(features[300:]) > novelty.threshold) < 0.1


def test_kinds_are_told_from_radiographs_in_the_earlier_layers():
    """The last 30 features, of the last feature map, do not know the outliers; the first 8 do."""
    random = np.random.default_rng(0)
    features = random.normal(0, 1, (600, 38)).astype(np.float32)
    moved, raised = features[:50].copy(), features[50:100].copy()
    moved[:, 3] += 12
    raised[:, 5] += 12
    layers = ("early", "middle")
    novelty = fit_novelty(
        features[100:400], [features[400:500], features[500:]], {"moved": moved, "raised": raised}, layers, last=30
    )
    assert (novelty.layers, novelty.names) == (layers, ("moved", "raised"))
    assert novelty.kinds.shape == (8, 2) and novelty.basis.shape == (30, DIRECTIONS) and novelty.mean.shape == (38,)
    assert (novelty.of(moved) > novelty.threshold).all() and (novelty.of(raised) > novelty.threshold).all()
    assert (novelty.beyond(moved).argmax(axis=1) == 0).all() and (novelty.beyond(raised).argmax(axis=1) == 1).all()


def test_a_kind_that_breaks_a_rule_of_the_radiographs_is_flagged():
    """48 early features follow 8 factors but for little noise. In the outliers one of them is a third of a σ higher."""
    random = np.random.default_rng(0)
    early = random.normal(0, 1, (1000, 8)) @ random.normal(0, 1, (8, 48)) + random.normal(0, 0.05, (1000, 48))
    early[:120, 5] += 1
    features = np.concatenate([early, random.normal(0, 1, (1000, 20))], axis=1).astype(np.float32)
    novelty = fit_novelty(features[120:700], [features[700:]], {"adult": features[:60]}, ("early",), last=20)
    assert np.mean(novelty.of(features[60:120]) > novelty.threshold) > 0.95


def test_no_version_of_radiographs_is_flagged_more_than_a_few_times():
    """A change that moves all features of one version in twenty must not be flagged as a whole."""
    random = np.random.default_rng(0)
    versions = [random.normal(0, 1, (100, 40)).astype(np.float32) for _ in range(200)]
    versions[7] = versions[7] * 2
    novelty = fit_novelty(versions[0], versions, {"bright": versions[1] + 30})
    assert np.mean(novelty.of(versions[7]) > novelty.threshold) <= 0.03


@needs_shared
def test_radiographs_in_their_original_size_are_familiar():
    radiographs = find_images(SHARED / "data" / "originals")
    assert np.mean([p.in_distribution for p in load().predict_many(radiographs)]) >= 0.95

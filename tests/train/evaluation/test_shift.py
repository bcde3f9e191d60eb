import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_edge.common.dataset import LabelledImage, read_dataset, read_pixels
from cxr_edge.common.metrics import Estimate
from cxr_edge.common.statistics import calibration_error, to_probability
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.train.data.appearance import appearance_clusters
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.evaluation.crossfit import leave_clusters_out
from cxr_edge.train.evaluation.shift import BLOCKS, Proxy, Shift, measure_shift, strata


@pytest.fixture(scope="module")
def images(phantoms):
    return read_dataset(phantoms, ("test",))


@pytest.fixture(scope="module")
def pixels(images):
    return read_pixels(images)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_changes_pixels_and_nothing_else(name, pixels):
    before = pixels.copy()
    changed = perturb(pixels, PERTURBATIONS[name])
    assert changed.shape == pixels.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)
    difference = np.abs(changed.astype(int) - pixels)
    # Every image, visibly, and still the same radiograph.
    least = 0.3 if name == "side marker added" else 0.5  # it covers little
    assert (difference.mean(axis=(1, 2, 3)) > least).all()
    for ours, theirs in zip(pixels, changed, strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.3
    np.testing.assert_array_equal(perturb(pixels[::-1], PERTURBATIONS[name]), changed[::-1])


def test_perturbations_do_what_their_names_say(pixels):
    image = pixels[0, :, :, 0]
    apply = {name: change(image) for name, change in PERTURBATIONS.items()}
    assert apply["gamma 0.7"].mean() > image.mean() > apply["gamma 1.4"].mean()
    assert apply["contrast 0.7"].std() < image.std() < apply["contrast 1.3"].std()

    def sharpness(gray):
        return cv2.Laplacian(gray, cv2.CV_64F).var()

    assert sharpness(apply["blur, sigma 1.5 pixels"]) < sharpness(image) < sharpness(apply["noise, sigma 10 levels"])
    assert (apply["scaled by 0.9"][:8] == 0).all() and not (apply["scaled by 1.1"][:8] == 0).all()
    there = PERTURBATIONS["rotated by −8°"](apply["rotated by 8°"])[60:160, 60:160]
    assert np.abs(there.astype(int) - image[60:160, 60:160]).mean() < 4


def brightness(pixels):
    """A network of sorts: opacities are bright."""
    return pixels.mean(axis=(1, 2, 3)) / 10 - 10


def test_proxies_are_measured_on_what_they_name(images, pixels):
    labels = np.array([image.label for image in images])
    steps = []
    shift = measure_shift(brightness, images, pixels, threshold=0.4, temperature=2.0, step=steps.append)
    found = {proxy.name: proxy for proxy in shift.proxies}
    assert set(steps) == {"as they are", *PERTURBATIONS, "appearance clusters"}
    for name, seen in (("as they are", pixels), ("gamma 1.4", perturb(pixels, PERTURBATIONS["gamma 1.4"]))):
        logit = brightness(seen)
        decided = to_probability(logit, 2.0) >= 0.4
        assert found[name].images == len(images)
        assert found[name].auc == pytest.approx(roc_auc_score(labels, logit))
        assert found[name].sensitivity == pytest.approx(decided[labels == 1].mean())
        assert found[name].specificity == pytest.approx(1 - decided[labels == 0].mean())
        assert found[name].ece.value == pytest.approx(calibration_error(labels, to_probability(logit, 2.0)))
    assert found["gamma 1.4"].sensitivity < found["as they are"].sensitivity
    json.dumps([proxy.auc for proxy in shift.proxies], allow_nan=False)
    assert shift.worst.auc == min(p.auc for p in shift.proxies if p.auc is not None)


def test_appearance_clusters_are_left_out_with_every_version(phantoms):
    images = read_dataset(phantoms)
    seen = read_pixels(images)
    seen[::2] = perturb(seen[::2], PERTURBATIONS["blur, sigma 1.5 pixels"])
    shift = measure_shift(brightness, images, seen, 0.5, 1.0)
    assert len(shift.clusters) >= 2 and sum(each.images for each in shift.clusters) == len(images)
    labels = np.array([image.label for image in images])
    alone = leave_clusters_out(
        labels, [brightness(seen)], np.array([patient_of(i.path) for i in images]), appearance_clusters(seen, labels)
    )
    assert [each.metrics["roc_auc"] for each in alone] == [each.metrics["roc_auc"] for each in shift.clusters]
    # The perturbations change the thresholds.
    assert [each.threshold for each in alone] != [each.threshold for each in shift.clusters]


def test_strata_part_patients_and_causes(phantoms):
    images = read_dataset(phantoms)
    pixels = read_pixels(images)
    masks = dict(strata(images, pixels))
    blocks = [masks[f"patient numbers, block {block + 1} of {BLOCKS}"] for block in range(BLOCKS)]
    np.testing.assert_array_equal(np.sum(blocks, axis=0), 1)
    names = np.array([image.path.name for image in images])
    # A quarter of the images, not of the patients: every third patient has two.
    for block, name in ((0, "IM-0000-0001"), (0, "IM-0006-0001"), (1, "IM-0007-0000"), (0, "person1_virus_0")):
        assert f"{name}.jpeg" in names[blocks[block]]
    patients = [
        {patient_of(image.path) for image, inside in zip(images, mask, strict=True) if inside} for mask in blocks
    ]
    assert len(set.union(*patients)) == sum(map(len, patients))
    for cause, other in (("bacteria", "virus"), ("virus", "bacteria")):
        found = names[masks[f"{cause} against normal"]]
        assert not any(other in name for name in found)
        assert sum(cause in name for name in found) + sum(name.startswith("IM") for name in found) == len(found)
    mean = pixels.mean(axis=(1, 2, 3))
    assert mean[masks["darkest third"]].max() < mean[masks["brightest third"]].min()
    assert abs(masks["darkest third"].sum() - len(images) / 3) <= 1
    size = np.array([image.path.stat().st_size for image in images])
    assert size[masks["smallest third of files"]].max() < size[masks["largest third of files"]].min()
    aspect = np.array([gray.shape[1] / gray.shape[0] for gray in (read_image(image.path) for image in images)])
    assert aspect[masks["narrowest third"]].max() < aspect[masks["widest third"]].min()
    assert abs(masks["widest third"].sum() - len(images) / 3) <= 1


def test_names_of_another_scheme_and_equal_files_leave_strata_out(tmp_path):
    images = []
    for row in range(6):
        path = tmp_path / f"image-of-room-{row}.jpeg"
        cv2.imwrite(str(path), np.zeros((64, 48), np.uint8))
        images.append(LabelledImage(path, row % 2))
    pixels = np.random.default_rng(0).integers(0, 255, (6, 224, 224, 1), np.uint8)
    assert {name for name, _ in strata(images, pixels)} == {"darkest third", "brightest third"}


def test_the_shape_of_each_format_is_known(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import dicom, radiograph

    paths = [tmp_path / name for name in ("narrow.jpeg", "square.dcm", "wide.png")]
    for path, width in ((paths[0], 100), (paths[2], 160)):
        cv2.imwrite(str(path), np.zeros((128, width), np.uint8))
    paths[1].write_bytes(dicom(radiograph(128, 128)))
    masks = dict(strata([LabelledImage(path, 0) for path in paths], np.zeros((3, 224, 224, 1), np.uint8)))
    assert masks["narrowest third"].tolist() == [True, False, False]
    assert masks["widest third"].tolist() == [False, False, True]


def test_a_stratum_of_one_class_has_no_auc_and_is_not_the_worst(images, pixels):
    labels = np.array([image.label for image in images])
    seen = pixels.copy()
    seen[labels == 1] = np.maximum(seen[labels == 1], 120)
    seen[labels == 0] = np.minimum(seen[labels == 0], 100)
    shift = measure_shift(brightness, images, seen, 0.5, 1.0)
    darkest = next(p for p in shift.proxies if p.name == "darkest third")
    assert darkest.auc is None and darkest.sensitivity is None and darkest.specificity is not None
    assert shift.worst.auc is not None


def test_the_worst_is_named_by_ranking_and_by_decisions():
    low, high = Estimate(0.1, 0.05, 0.2), Estimate(0.3, 0.2, 0.4)
    ranking = Proxy("ranking", "stratum", 9, 0.6, 0.9, 0.9, high)
    decisions = Proxy("decisions", "stratum", 9, 0.9, 1.0, 0.1, low)
    calibration = Proxy("calibration", "perturbation", 9, 0.9, 0.9, 0.9, replace(high, value=0.2))
    shift = Shift((Proxy("as they are", "none", 9, 0.99, 0.9, 0.9, low), ranking, decisions, calibration), ())
    assert (shift.worst, shift.worst_decisions) == (ranking, decisions)
    assert shift.worst_calibration == calibration  # of all images, not of a stratum

"""Images of patients that the run held out never set an int8 range: neither validation's nor the hold-out's."""

import json

import pytest

from cxr_edge.common.dataset import evenly, fingerprint, read_dataset
from cxr_edge.common.run import Run
from cxr_edge.export.conversion.provenance import calibration_images
from cxr_edge.runtime import Bundle, DataError, UsageError


@pytest.fixture
def held_out_run(phantoms, tmp_path):
    """The record of a run that held out every fourth image as validation, and every fourth as hold-out."""
    keys = [image.key for image in read_dataset(phantoms, ("train",))]
    return Run(tmp_path, {"split": {"validation_files": keys[::4], "holdout_files": keys[2::4]}})


@pytest.mark.parametrize("count", [8, 32, 1000])
def test_no_image_of_validation_or_hold_out_is_drawn(held_out_run, phantoms, count):
    images = read_dataset(phantoms, ("train",))
    allowed = [image for image in images if image.key not in held_out_run.held_out]
    assert len(allowed) == len(images) // 2
    drawn = calibration_images(held_out_run, phantoms, count)
    assert {image.key for image in drawn}.isdisjoint(held_out_run.held_out)
    assert drawn == evenly(allowed, count) and len(drawn) == min(count, len(allowed))
    assert {image.label for image in drawn} == {0, 1}


def test_without_other_images_there_is_no_calibration(phantoms, tmp_path):
    keys = [image.key for image in read_dataset(phantoms, ("train",))]
    with pytest.raises(DataError, match="only images of patients that the run held out"):
        calibration_images(Run(tmp_path, {"split": {"validation_files": keys}}), phantoms, 8)
    with pytest.raises(UsageError, match="--calib"):
        calibration_images(Run(tmp_path, {"split": {"validation_files": []}}), None, 8)


def test_the_manifest_vouches_for_calibration_images_that_were_trained_on(bundle, run, phantoms):
    """From the outside, by content: the fingerprint of the images that an export drew."""
    split = json.loads((run / "run.json").read_text())["split"]
    held_out = {*split["validation_files"], *split["holdout_files"]}
    allowed = [image for image in read_dataset(phantoms, ("train",)) if image.key not in held_out]
    drawn = evenly(allowed, 32)
    assert drawn != evenly(read_dataset(phantoms, ("train",)), 32)
    assert Bundle.open(bundle).manifest.calibration == {"images": 32, "fingerprint": fingerprint(drawn)}

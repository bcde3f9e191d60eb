"""`cxr-edge calibrate` from end to end: a network trained on drawn radiographs, at a site with other patients."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import pytest
from support import SHARED, needs_shared, write_keys

from cxr_edge.runtime import Bundle, DataError, IntegrityError, load
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.sites.calibration import calibrate as module
from cxr_edge.sites.calibration.calibrate import calibrate_bundle
from cxr_edge.sites.calibration.images import read_labels


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def model(bundle, tmp_path_factory):
    """The bundle with every drawn image in distribution."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("model") / "bundle")
    manifest = Bundle.open(folder).manifest
    (folder / "manifest.json").write_text(replace(manifest, novelty_threshold=1e6).to_json())
    return folder


@pytest.fixture(scope="module")
def calibrated(model, site, tmp_path_factory):
    """A site bundle from labels, as the default; tests that change it copy it first."""
    target = tmp_path_factory.mktemp("site") / "bundle-site"
    calibrate_bundle(
        model, site / "images", site / "site.csv", target, prevalence=None, sensitivity=None, is_default=True,
        force=False, tick=lambda: None,
    )  # fmt: skip
    return target


def test_the_first_bundle_is_untouched_and_the_files_are_the_same(model, site, tmp_path, cli):
    before = contents(model)
    options = ("--images", site / "images", "--labels", site / "site.csv", "--format", "json")
    code, out, err = cli("calibrate", model, *options, "-o", tmp_path / "new")
    assert code == 0 and f"next: cxr-edge verify {tmp_path / 'new'}" in err
    assert contents(model) == before
    after = contents(tmp_path / "new")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        "manifest.json",
        "MODEL_CARD.md",
    }
    old, new = Bundle.open(model).manifest, Bundle.open(tmp_path / "new").manifest
    assert new.operating_points[:-1] == old.operating_points and new.operating_points[-1].name == "site"
    assert new.site.labelled == new.site.images and new.site.shift_interval[0] <= new.site.shift_interval[1]
    assert json.loads(out)["fingerprint"] == new.site.fingerprint
    assert "## Calibrated at a site" in (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert not list(tmp_path.glob(".*partial"))


def test_every_prediction_says_so(calibrated, site, cli):
    image = next((site / "images").iterdir())
    record = Bundle.open(calibrated).manifest.site
    for point in (None, "screening"):
        with load(calibrated, operating_point=point) as predictor:
            prediction = predictor.predict(image)
        assert prediction.operating_point == (point or "site")
        assert prediction.calibrated == record.date == prediction.to_dict()["calibrated"]
        assert prediction.site_probability == record.probability(prediction.logit)
    code, out, _ = cli("inspect", calibrated)
    assert code == 0 and f"calibrated        {record.date}" in out


def test_one_command_undoes_it(model, calibrated, tmp_path, cli):
    code, _, err = cli("calibrate", "--undo", calibrated, "-o", tmp_path / "back")
    assert code == 0, err
    assert Bundle.open(tmp_path / "back").manifest == Bundle.open(model).manifest
    assert contents(tmp_path / "back") == contents(model)
    code, _, err = cli("calibrate", "--undo", model, "-o", tmp_path / "again")
    assert code == 2 and "nothing to undo" in err


def test_a_second_calibration_replaces_the_first(calibrated, site, tmp_path, cli):
    options = ("--images", site / "images", "--labels", site / "site.csv")
    assert cli("calibrate", calibrated, *options, "--sensitivity", "1", "-o", tmp_path / "second")[0] == 0
    points = Bundle.open(tmp_path / "second").manifest.operating_points
    assert [point.name for point in points].count("site") == 1 and points[0].name != "site"
    assert "sensitivity 1.000" in points[-1].chosen


def test_verify_holds_every_file_to_the_new_threshold(calibrated, run, phantoms, cli, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "bundle")
    code, _, _ = cli("verify", folder, "--data", phantoms, "--run", run, "--format", "json")
    rows = json.loads((folder / "parity.json").read_text())["files"]
    assert {row["path"] for row in rows} == {file.path for file in Bundle.open(folder).manifest.files}
    # The int8 file of so small a network may flip a decision, at `site` as at any other point; then verify fails.
    assert all(row["passed"] for row in rows if row["precision"] != "int8")
    assert code == (0 if all(row["passed"] for row in rows) else 1)
    assert all("site" in row["flips"] for row in rows)


@pytest.mark.slow
@needs_shared
def test_without_labels_the_threshold_lies_between_both_modes(tmp_path, cli):
    folder, target, answers = tmp_path / "site", tmp_path / "new", {}
    folder.mkdir()
    for label in ("NORMAL", "PNEUMONIA"):
        for path in sorted((SHARED / "data" / "chest_xray" / "train" / label).iterdir())[:60]:
            # As PNG, because the bundle refuses the files that it was trained on.
            cv2.imwrite(str(folder / f"{path.stem}.png"), read_image(path))
            answers[f"{path.stem}.png"] = label
    code, _, err = cli("calibrate", packaged_model(), "--images", folder, "-o", target)
    assert code == 0, err
    record = Bundle.open(target).manifest
    assert (record.site.images, record.site.labelled) == (120, 0) and 0.4 < record.site.prevalence < 0.6
    assert "without labels" in record.operating_point("site").chosen
    with load(target, operating_point="site") as predictor:
        right = [predictor.predict(folder / name).label == label for name, label in answers.items()]
    assert sum(right) >= 114


def test_a_large_shift_needs_force(model, site, tmp_path, cli, monkeypatch):
    options = ("--images", site / "images", "--labels", site / "site.csv", "-o", tmp_path / "new")
    monkeypatch.setattr(module, "LARGEST_SHIFT", 1e-9)
    code, _, err = cli("calibrate", model, *options)
    assert code == 2 and "found a shift of the threshold by" in err and "--force" in err
    assert not (tmp_path / "new").exists()
    assert cli("calibrate", model, *options, "--force")[0] == 0
    assert Bundle.open(tmp_path / "new").manifest.site.forced


def test_a_signature_does_not_cover_the_site_bundle(model, site, tmp_path, cli):
    pytest.importorskip("model_signing")
    private, public = write_keys(tmp_path / "keys")
    signed, target = shutil.copytree(model, tmp_path / "signed"), tmp_path / "new"
    assert cli("sign", signed, "--key", private)[0] == 0
    code, _, err = cli("calibrate", signed, "--images", site / "images", "--labels", site / "site.csv", "-o", target)
    assert code == 0 and f"the signature of {signed} does not cover it" in err
    load(signed, trusted=public).close()
    with pytest.raises(IntegrityError, match=r"found no model\.sig"):
        load(target, trusted=public)
    assert cli("sign", target, "--key", private)[0] == 0
    load(target, trusted=public, operating_point="site").close()


def test_training_images_are_refused(model, phantoms, tmp_path, cli):
    code, _, err = cli("calibrate", model, "--images", phantoms, "-o", tmp_path / "new")
    assert code == 2 and "are also in the training data, expected none" in err
    assert not (tmp_path / "new").exists()


def test_strangers_are_refused(bundle, site, tmp_path, cli):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    (folder / "manifest.json").write_text(replace(manifest, novelty_threshold=0.0).to_json())
    code, _, err = cli("calibrate", folder, "--images", site / "images", "-o", tmp_path / "new")
    assert code == 2 and "unlike the training set, expected 20% at most" in err


def test_targets_that_would_change_a_bundle_are_refused(model, site, tmp_path, cli):
    options = ("--images", site / "images")
    for target, message in ((model, "exists"), (model / "inner", "lies in"), (site, "exists")):
        code, _, err = cli("calibrate", model, *options, "-o", target)
        assert code == 2 and message in err
    lone = next(model.glob("*.onnx"))
    code, _, err = cli("calibrate", lone, *options, "-o", tmp_path / "new")
    assert code == 2 and "sealed inside" in err


@pytest.mark.parametrize("range", ["0.5..0.2", "0..0.5", "half"])
def test_a_wrong_range_is_a_usage_error(range, tmp_path, cli):
    code, _, err = cli("calibrate", "b", "--images", "s", "--prevalence", range, "-o", tmp_path / "new")
    assert code == 2 and range in err


def test_options_that_need_others(model, site, tmp_path, cli):
    code, _, err = cli("calibrate", model, "-o", tmp_path / "new")
    assert code == 2 and "--images: found nothing" in err
    code, _, err = cli("calibrate", model, "--images", site, "--sensitivity", "0.9", "-o", tmp_path / "new")
    assert code == 2 and "name them with --labels" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", "found the header 'file,label', expected 'path,label'"),
        ("path,label\nb.png,NORMAL\n", "line 2: found 'b.png', which is no image file in"),
        ("path,label\na.png,SICK\n", "line 2: found 'a.png,SICK', expected PATH,NORMAL or PNEUMONIA"),
        ("path,label\na.png,0\na.png,1\n", "line 3: found 'a.png' for the second time"),
        ("path,label\na.png\n", "line 2: found 'a.png', expected"),
    ],
)
def test_labels_are_checked(text, message, tmp_path):
    (tmp_path / "site.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / "site.csv", tmp_path, [tmp_path / "a.png"], ("NORMAL", "PNEUMONIA"))
    assert message in str(error.value)


def test_the_record_survives_json(calibrated):
    manifest = Bundle.open(calibrated).manifest
    assert asdict(type(manifest).from_json(manifest.to_json(), "again")) == asdict(manifest)

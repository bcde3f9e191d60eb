"""A bundle that a site calibrated: every prediction says so, and its record is checked."""

import csv
import json
import math
import shutil
from dataclasses import asdict, replace

import pytest

from cxr_edge.runtime import Bundle, BundleError, load
from cxr_edge.runtime.bundles.bom import bill_of_materials
from cxr_edge.runtime.bundles.manifest import Manifest, OperatingPoint, SiteCalibration

RECORD = SiteCalibration(
    "2026-11-22T01:00:00+00:00", "valley", 100, 0, 2, "0" * 64, 0.4, (0.3, 0.5), (0.6, 0.8), 0.5, (0.2, 0.9), 4.0,
    False, 0.7, -1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(bundle, tmp_path_factory):
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("calibrated") / "bundle")
    manifest = Bundle.open(folder).manifest
    points = (*manifest.operating_points, OperatingPoint("site", 0.7, "by hand"))
    made = replace(manifest, operating_points=points, site=RECORD, schema_version=2)
    (folder / "manifest.json").write_text(made.to_json())
    return folder


def test_predictions_name_the_date_and_have_the_probability_of_the_site(bundle, calibrated, xray):
    with load(bundle) as shipped, load(calibrated) as other, load(calibrated, operating_point="site") as own:
        before, same, found = (predictor.predict(xray) for predictor in (shipped, other, own))
    assert (before.calibrated, before.site_probability) == (None, None)
    assert same.calibrated == found.calibrated == RECORD.date
    assert found.site_probability == pytest.approx(1 / (1 + math.exp(1 - 0.7 * found.logit)))
    assert found.probability == before.probability and found.threshold == 0.7
    assert same.label == before.label and same.threshold == before.threshold


def test_a_batch_writes_both_columns(calibrated, xray, tmp_path, cli):
    assert cli("predict", "-m", calibrated, xray, "-o", tmp_path / "out.csv")[0] == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["calibrated"] == RECORD.date and 0 <= float(row["site_probability"]) <= 1
    assert json.loads((tmp_path / "out.csv.run.json").read_text())["calibrated"] == RECORD.date


def test_the_picture_inspect_and_the_bill_of_materials_say_it(calibrated, xray, cli):
    with load(calibrated) as predictor:
        assert predictor.explain(xray).prediction.calibrated == RECORD.date
    code, out, _ = cli("inspect", calibrated)
    assert code == 0 and "valley, 100 images (0 labelled)" in out and "+0.50 log-odds (bound 4)" in out
    card = bill_of_materials(Bundle.open(calibrated).manifest)["metadata"]["component"]["modelCard"]
    assert any(each["name"] == "cxr-edge:site" and RECORD.date in each["value"] for each in card["properties"])


def test_a_lone_file_keeps_the_shipped_thresholds(calibrated):
    lone = Bundle.open(calibrated / Bundle.open(calibrated).manifest.files[0].path)
    assert lone.manifest.site is None
    assert all(point.name != "site" for point in lone.manifest.operating_points)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("method", "guess", "valley"),
        ("prevalence_interval", [0.5, 0.3], "two numbers, the lower one first"),
        ("threshold_interval", [0.5], "two numbers"),
        ("fingerprint", "0", "64 hexadecimal digits"),
        ("slope", 0, "a number > 0"),
    ],
)
def test_every_field_of_the_record_is_checked(calibrated, field, value, expected):
    data = json.loads((calibrated / "manifest.json").read_text())
    data["site"][field] = value
    with pytest.raises(BundleError, match=f"site.{field}.*{expected}"):
        Manifest.from_json(json.dumps(data), "manifest.json")


def test_a_record_without_its_operating_point_is_refused(calibrated):
    data = json.loads((calibrated / "manifest.json").read_text())
    data["operating_points"].pop()
    with pytest.raises(BundleError, match="no point 'site'"):
        Manifest.from_json(json.dumps(data), "manifest.json")


def test_probabilities_do_not_overflow():
    steep = replace(RECORD, slope=1000.0)
    assert [steep.probability(z) for z in (-1e6, 1e6)] == [0, 1]
    assert asdict(steep)["slope"] == 1000

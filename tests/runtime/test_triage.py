"""The three-way operating point: every command and class of the runtime knows its third answer."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cxr_edge.runtime import Bundle, UsageError, load
from cxr_edge.runtime.bundles.bom import bill_of_materials
from cxr_edge.runtime.bundles.manifest import OperatingPoint
from cxr_edge.runtime.cli.journal import Facts


@pytest.fixture(scope="module")
def images(phantoms):
    return sorted((phantoms / "test").rglob("*.jpeg"))


@pytest.fixture(scope="module")
def probabilities(bundle, images):
    with load(bundle) as predictor:
        return np.array([each.probability for each in predictor.predict_many(images)])


@pytest.fixture(scope="module")
def three_way(bundle, probabilities, tmp_path_factory):
    """The bundle with a point `triage` whose thresholds lie in the widest gaps of the lower and the upper half."""
    ordered = np.unique(probabilities)
    middle = len(ordered) // 2
    lower, upper = (
        float(np.mean(max(pairwise(part), key=lambda pair: pair[1] - pair[0])))
        for part in (ordered[:middle], ordered[middle:])
    )
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("triage") / "bundle")
    manifest = Bundle.open(folder).manifest
    points = tuple(point for point in manifest.operating_points if point.rule_out is None)
    points = (*points, OperatingPoint("triage", upper, "by hand", rule_out=lower))
    (folder / "manifest.json").write_text(replace(manifest, operating_points=points, schema_version=2).to_json())
    return folder


def answer(probability, point):
    if probability >= point.threshold:
        return "PNEUMONIA"
    return "UNSURE" if probability >= point.rule_out else "NORMAL"


def test_each_answer_occurs_where_its_probability_lies(three_way, images):
    with load(three_way, operating_point="triage") as predictor:
        point = predictor.operating_point
        found = list(predictor.predict_many(images))
    assert {each.label for each in found} == {"NORMAL", "UNSURE", "PNEUMONIA"}
    for each in found:
        assert each.label == answer(each.probability, point)
        assert (each.threshold, each.rule_out) == (point.threshold, point.rule_out)
        assert each.to_dict()["rule_out"] == point.rule_out


def test_other_points_have_two_answers(three_way, images):
    with load(three_way) as predictor:
        found = list(predictor.predict_many(images))
    assert {each.label for each in found} <= {"NORMAL", "PNEUMONIA"}
    assert all(each.rule_out is None for each in found)


def test_the_picture_names_the_answer(three_way, images):
    with load(three_way, operating_point="triage") as predictor:
        unsure = next(image for image in images if predictor.predict(image).label == "UNSURE")
        assert predictor.explain(unsure).prediction.label == "UNSURE"


def test_a_bundle_without_triage_names_its_points(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    points = tuple(point for point in manifest.operating_points if point.rule_out is None)
    (folder / "manifest.json").write_text(replace(manifest, operating_points=points).to_json())
    with pytest.raises(UsageError, match="no operating point 'triage' in this bundle; it has: balanced"):
        load(folder, operating_point="triage")


def test_predict_writes_both_thresholds(three_way, images, tmp_path, cli):
    model = ("-m", three_way, "--operating-point", "triage")
    code, out, _ = cli("predict", *model, *images)
    assert code == 0 and "rule_out" in out and "UNSURE" in out
    assert cli("predict", *model, *images, "-o", tmp_path / "out.csv")[0] == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    point = Bundle.open(three_way).manifest.operating_point("triage")
    assert [row["label"] for row in rows] == [answer(float(row["probability"]), point) for row in rows]
    assert {float(row["rule_out"]) for row in rows} == {point.rule_out}
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert (record["threshold"], record["rule_out"]) == (point.threshold, point.rule_out)


def test_an_interrupted_batch_does_not_go_on_with_another_lower_threshold(three_way, images, tmp_path, cli):
    target, model = tmp_path / "out.jsonl", ("-m", three_way, "--operating-point", "triage")
    with load(three_way, operating_point="triage") as predictor:
        facts = Facts.of(predictor)
    from cxr_edge.runtime.cli.journal import Journal

    with Journal(tmp_path / "out.jsonl.partial", replace(facts, rule_out=0.0)):
        pass
    code, _, err = cli("predict", *model, images[0], "-o", target)
    assert code == 2 and "rule_out 0.0, now" in err


def test_inspect_and_the_bill_of_materials_name_both_thresholds(three_way, cli):
    manifest = Bundle.open(three_way).manifest
    point = manifest.operating_point("triage")
    code, out, _ = cli("inspect", three_way)
    assert code == 0 and f"triage p ≥ {point.threshold:.4f}, unsure from {point.rule_out:.4f} (by hand)" in out
    card = bill_of_materials(manifest)["metadata"]["component"]["modelCard"]
    values = {each["name"]: each["value"] for each in card["properties"]}
    assert values["cxr-edge:operating_point:triage"] == (
        f"p >= {point.threshold}, unsure from {point.rule_out}: by hand"
    )

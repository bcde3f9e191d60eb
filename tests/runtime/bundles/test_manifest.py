"""Every field of the manifest is checked; errors say which, what was found, what was expected and what to do."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cxr_edge.runtime import Bundle, BundleError
from cxr_edge.runtime.bundles.manifest import Manifest
from cxr_edge.runtime.predictor import packaged_model

TEXT = (packaged_model() / "manifest.json").read_text()
THRESHOLD = json.dumps(json.loads(TEXT)["operating_points"][0]["threshold"])
#: Fields of the manifest that schema 1 lacks.
NEW_IN_SCHEMA_2 = ("lungs", "novelty_kinds")
MISSING = object()


def changed(path, value):
    """Text of the packaged manifest with one field changed; `path` is its keys."""
    data = json.loads(TEXT)
    *parents, key = path
    place = data
    for parent in parents:
        place = place[parent]
    if value is MISSING:
        del place[key]
    else:
        place[key] = value
    return json.dumps(data)


@pytest.mark.parametrize("version", [1, 2])
def test_both_schemas_are_read(version):
    data = json.loads(TEXT) | {"schema_version": version}
    if version == 1:
        for name in NEW_IN_SCHEMA_2:
            del data[name]
        for point in data["operating_points"]:
            del point["rule_out"]
    manifest = Manifest.from_json(json.dumps(data), "manifest.json")
    assert manifest.schema_version == version
    three_way = [point.name for point in manifest.operating_points if point.rule_out is not None]
    assert three_way == (["triage"] if version == 2 else [])
    assert (manifest.lungs is None) == (version == 1) and bool(manifest.novelty_kinds) == (version == 2)


def test_an_operating_point_has_two_or_three_answers():
    manifest = Manifest.from_json(changed(["operating_points", 1, "rule_out"], 0.1), "manifest.json")
    plain, three_way = manifest.operating_points[0], replace(manifest.operating_points[1], threshold=0.5)
    assert manifest.answers(plain) == ("NORMAL", "PNEUMONIA")
    assert manifest.answers(three_way) == ("NORMAL", "UNSURE", "PNEUMONIA")
    shown = [manifest.answers(three_way)[three_way.answer(p)] for p in (0.0, 0.0999, 0.1, 0.4999, 0.5, 1.0)]
    assert shown == ["NORMAL", "NORMAL", "UNSURE", "UNSURE", "PNEUMONIA", "PNEUMONIA"]
    assert three_way.answer(np.array([0.0, 0.1, 0.5])).tolist() == [0, 1, 2]
    assert plain.answer(np.array([0.0, plain.threshold])).tolist() == [0, 1]
    assert three_way.rule == "p ≥ 0.5000, unsure from 0.1000" and plain.rule == f"p ≥ {plain.threshold:.4f}"


def test_it_survives_json():
    manifest = Bundle.open(packaged_model()).manifest
    assert Manifest.from_json(manifest.to_json(), "again") == manifest


def test_kinds_of_outliers_are_new_in_schema_2():
    assert json.loads(TEXT).get("novelty_kinds", []) == list(Manifest.from_json(TEXT, "packaged").novelty_kinds)
    earlier = {key: value for key, value in json.loads(TEXT).items() if key != "novelty_kinds"} | {"schema_version": 1}
    assert Manifest.from_json(json.dumps(earlier), "earlier").novelty_kinds == ()
    named = earlier | {"schema_version": 2, "novelty_kinds": ["adult", "turned"]}
    assert Manifest.from_json(json.dumps(named), "named").novelty_kinds == ("adult", "turned")


RISING = [float(percent) for percent in range(101)]
OF_CLASS = {
    "images": 9, "patients": 8, "logit": RISING, "novelty": RISING, "novel": 1, "with_evidence": 3,
    "evidence_in_lungs": RISING, "lungs_missed": 0,
}  # fmt: skip
REFERENCE = {"part": "hold-out", "classes": [OF_CLASS, OF_CLASS | {"evidence_in_lungs": None, "lungs_missed": None}]}


def test_the_reference_is_optional():
    data = {key: value for key, value in json.loads(TEXT).items() if key != "reference"}
    assert Manifest.from_json(json.dumps(data), "without").reference is None
    manifest = Manifest.from_json(json.dumps(data | {"reference": REFERENCE}), "with")
    assert manifest.reference and manifest.reference.classes[0].logit == tuple(RISING)
    assert Manifest.from_json(manifest.to_json(), "again") == manifest


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"logit": RISING[::-1]}, "reference.classes[0].logit", "101 ascending numbers"),
        ({"novelty": RISING[1:]}, "reference.classes[0].novelty", "101 ascending numbers"),
        ({"logit": [*RISING[1:], "x"]}, "reference.classes[0].logit[100]", 'found "x"'),
        ({"evidence_in_lungs": 3}, "reference.classes[0].evidence_in_lungs", "101 ascending numbers"),
        ({"images": 0}, "reference.classes[0].images", "a whole number ≥ 1"),
        ({"novel": -1}, "reference.classes[0].novel", "a whole number ≥ 0"),
    ],
)
def test_a_wrong_distribution_is_refused(change, field, expected):
    classes = [OF_CLASS | change, OF_CLASS]
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(changed(["reference"], REFERENCE | {"classes": classes}), "manifest.json")
    assert str(caught.value).startswith(f"manifest.json: {field}: ") and expected in str(caught.value)


def test_a_reference_has_both_classes():
    with pytest.raises(BundleError, match="one entry for each class"):
        Manifest.from_json(changed(["reference"], REFERENCE | {"classes": [OF_CLASS]}), "manifest.json")


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        (["schema_version"], 99, "schema_version", "expected 1 or 2; upgrade cxr-edge"),
        (["schema_version"], MISSING, "schema_version", "expected 1 or 2; upgrade cxr-edge"),
        (["name"], "", "name", "a name of 1 to 200 printable characters"),
        (["created"], 3, "created", "a name"),
        (["surprise"], 1, "", "unknown field \"surprise\", expected only the fields name, created"),
        (["input"], None, "input", "found null, expected an object"),
        (["input"], {"heigth": 224}, "input", "unknown field \"heigth\""),
        (["input", "height"], 0, "input.height", "a whole number from 1"),
        (["input", "height"], 10**9, "input.height", "a whole number from 1"),
        (["input", "width"], 224.0, "input.width", "a whole number"),
        (["input", "width"], True, "input.width", "a whole number"),
        (["input", "channels"], 2, "input.channels", "1 or 3"),
        (["input", "dtype"], "float64", "input.dtype", '"uint8"'),
        (["input", "layout"], "NCHW", "input.layout", '"NHWC"'),
        (["input", "interpolation"], "cubic", "input.interpolation", '"area"'),
        (["heatmap"], MISSING, "heatmap", "found nothing, expected an object"),
        (["heatmap", "stride"], 0, "heatmap.stride", "a number > 0"),
        (["heatmap", "origin"], "24", "heatmap.origin", "a number"),
        (["novelty_kinds"], ["adult", "adult"], "novelty_kinds", "different names of kinds"),
        (["novelty_kinds"], ["adult", ""], "novelty_kinds[1]", "a name of 1 to 200"),
        (["operating_points"], [], "operating_points", "at least one operating point"),
        (["operating_points"], {}, "operating_points", "found {}, expected at least one operating point"),
        (["operating_points", 1], {"name": "x"}, "operating_points[1].threshold", "a number in [0, 1]"),
        (["operating_points", 1, "threshold"], 1.7, "operating_points[1].threshold", "found 1.7, expected a number in"),
        (["operating_points", 0, "threshold"], -0.1, "operating_points[0].threshold", "a number in [0, 1]"),
        (["operating_points", 0, "threshold"], "0.5", "operating_points[0].threshold", 'found "0.5"'),
        (["operating_points", 0, "threshold"], None, "operating_points[0].threshold", "found null"),
        (["operating_points", 0, "rule_out"], -0.1, "operating_points[0].rule_out", "a number in [0, 1]"),
        (["operating_points", 0, "rule_out"], 0.9, "operating_points[0].rule_out", "found 0.9, expected at most the"),
        (["operating_points", 0, "rule_out"], "x", "operating_points[0].rule_out", 'found "x"'),
        (["operating_points", 0, "chosen"], "a\x1b[2J", "operating_points[0].chosen", "printable text on one line"),
        (["operating_points", 0, "name"], "screening", "operating_points", "two entries of the name 'screening'"),
        (["novelty_threshold"], -1, "novelty_threshold", "a number ≥ 0"),
        (["temperature"], 0, "temperature", "a number > 0"),
        (["temperature"], MISSING, "temperature", "found nothing, expected a number > 0"),
        (["classes"], MISSING, "classes", "found nothing, expected two different class names"),
        (["classes"], [], "classes", "two different class names"),
        (["classes"], ["A", "A"], "classes", "two different class names"),
        (["classes"], ["A", "B", "C"], "classes", "two different class names"),
        (["classes"], ["A", ""], "classes[1]", "a name of 1 to 200"),
        (["classes"], "AB", "classes", 'found "AB", expected two different class names'),
        (["training"], [], "training", "an object"),
        (["files"], 3, "files", "found 3, expected a list"),
        (["files"], None, "files", "found null, expected a list"),
        (["files", 0], 3, "files[0]", "an object"),
        (["files", 0, "path"], "../x", "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "/etc/passwd", "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "C:x", "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "a\0b", "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "..", "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "x" * 300, "files[0].path", "inside the bundle"),
        (["files", 0, "path"], "model.int8.tflite", "files", "two entries of the path 'model.int8.tflite'"),
        (["files", 0, "engine"], "torch", "files[0].engine", '"tensorrt" or "litert" or "onnx"'),
        (["files", 0, "precision"], "INT 4", "files[0].precision", 'such as "fp32", "fp16" or "int8"'),
        (["files", 0, "sha256"], "xyz", "files[0].sha256", "64 hexadecimal digits"),
        (["files", 0, "sha256"], "", "sha256 of model.onnx", "64 hexadecimal digits"),
        (["files", 0, "bytes"], -1, "files[0].bytes", "a whole number ≥ 0"),
        (["gradient"], 3, "gradient", "an object"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_used_is_named(path, value, field, expected):
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(changed(path, value), "bundle/manifest.json")
    message = str(caught.value)
    assert message.startswith(f"bundle/manifest.json: {field}" if field else "bundle/manifest.json: found")
    assert expected in message and "found" in message and "export" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "an object"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 50_000, "not JSON"),
        (changed(["training"], json.loads("[" * 40 + "]" * 40)), "nested deeper than 32 levels"),
        (TEXT.replace(THRESHOLD, "NaN"), "NaN is no number of JSON"),
        (TEXT.replace(THRESHOLD, "1e999"), "double precision"),
        (changed(["training", "seconds"], 10**400), "double precision"),
        (changed(["name"], "\ud800"), "not JSON"),
        (TEXT.replace('"temperature"', '"temperature": 1, "temperature"'), "a key occurs twice"),
        (" " * 2_000_000 + TEXT, "found 20"),
    ],
    ids=[
        "empty", "list", "deep lists", "deep objects", "nested values", "NaN", "infinite", "huge number", "surrogate",
        "key twice", "too long",
    ],
)  # fmt: skip
def test_json_that_cannot_be_used_is_refused(text, says):
    with pytest.raises(BundleError, match=says):
        Manifest.from_json(text, "bundle/manifest.json")


def test_a_huge_manifest_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(10**10)  # a sparse file: no room on the disk, and far more than the memory may be
    with pytest.raises(BundleError, match=r"manifest\.json: found more than 1 MB"):
        Bundle.open(tmp_path)

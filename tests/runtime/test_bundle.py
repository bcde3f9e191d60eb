import json
import re
import shutil

import pytest
from support import LITERT, ONNX, PACKAGED_FILES

from cxr_edge.runtime import Bundle, BundleError, IntegrityError, UsageError, load
from cxr_edge.runtime.bundle import Manifest
from cxr_edge.runtime.engines import available_engines


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_survives_json(bundle):
    manifest = Bundle.open(bundle).manifest
    assert Manifest.from_json(manifest.to_json(), "again") == manifest


@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_a_lone_file_decides_as_its_bundle(bundle, tmp_path, xray, engine, precision):
    whole = load(bundle, engine, precision)
    alone = load(shutil.copy(bundle / whole.file.path, tmp_path))
    assert (alone.file.engine, alone.file.precision) == (engine, precision)
    assert alone.predict(xray).probability == whole.predict(xray).probability
    assert alone.manifest.operating_points == whole.manifest.operating_points


def test_a_foreign_file_is_refused(bundle, tmp_path):
    stripped = tmp_path / "foreign.tflite"
    content = (bundle / "model.int8.tflite").read_bytes()
    stripped.write_bytes(content[: content.rindex(b"PK\x03\x04", 0, content.rindex(b"PK\x03\x04"))])
    with pytest.raises(BundleError, match="no cxr-edge facts"):
        load(stripped)


@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_a_changed_file_is_refused(copy, engine, precision):
    file = Bundle.open(copy).find(engine, precision)
    path = copy / file.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{re.escape(file.path)}.*sha256"):
        load(copy, engine, precision)
    for other in {"onnx", "litert"} & set(available_engines()) - {engine}:
        load(copy, other)  # the other file is none the worse


@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_a_file_cut_short_or_missing_is_refused(copy, engine, precision):
    path = copy / Bundle.open(copy).find(engine, precision).path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cut short"):
        load(copy, engine, precision)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        load(copy, engine, precision)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 99}, "upgrade cxr-edge"),
        ({"input": None}, "input: missing"),
        ({"input": {"heigth": 224}}, "unknown field 'heigth'"),
        ({"operating_points": []}, "no operating point"),
        ({"operating_points": [{"name": "x"}]}, "threshold"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"files": [{"path": "../x", "engine": "onnx", "precision": "fp32", "sha256": "", "bytes": 1}]}, "leaves"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(copy, changes, says):
    change_manifest(copy, **changes)
    with pytest.raises(BundleError, match=says):
        Bundle.open(copy)


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(BundleError, match="cxr-edge export"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("engine", [ONNX, LITERT])
def test_wrong_input_contract_is_refused(copy, engine):
    feed = json.loads((copy / "manifest.json").read_text())["input"]
    change_manifest(copy, input=feed | {"height": 256})
    with pytest.raises(BundleError, match="its input is"):
        load(copy, engine)


def test_unknown_operating_point_lists_the_known(bundle):
    with pytest.raises(UsageError, match="balanced"):
        load(bundle, operating_point="bold")

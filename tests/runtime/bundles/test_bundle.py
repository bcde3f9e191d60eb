"""Bundles and lone files, broken one by one; on the packaged model, so that this runs on a device too."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from support import unsealed_copy

from cxr_edge.runtime import Bundle, BundleError, IntegrityError, UsageError, load
from cxr_edge.runtime.engines import missing_extra
from cxr_edge.runtime.errors import CxrEdgeWarning
from cxr_edge.runtime.predictor import packaged_model

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 280), np.uint8)
FILES = {"model.onnx": "onnx", "model.int8.tflite": "litert"}
ENGINES = [engine for engine in FILES.values() if missing_extra(engine) is None]


def needs(engine):
    return pytest.mark.skipif(engine not in ENGINES, reason=f"the engine {engine} is not installed")


each_file = pytest.mark.parametrize(
    ("name", "engine"), [pytest.param(name, engine, marks=needs(engine)) for name, engine in FILES.items()]
)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(packaged_model(), tmp_path / "bundle")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@each_file
def test_a_lone_file_decides_as_its_bundle(tmp_path, name, engine):
    lone = shutil.copy(packaged_model() / name, tmp_path)
    alone, whole = load(lone), load(engine=engine)
    assert alone.predict(IMAGE).probability == whole.predict(IMAGE).probability
    assert alone.manifest.operating_points == whole.manifest.operating_points


@each_file
def test_a_lone_file_of_an_earlier_version_without_a_digest_decides_alike(tmp_path, name, engine):
    alone, whole = load(unsealed_copy(packaged_model() / name, tmp_path)), load(engine=engine)
    assert alone.predict(IMAGE).probability == whole.predict(IMAGE).probability


@pytest.mark.parametrize("name", FILES)
def test_a_changed_sealed_file_is_refused_before_any_engine_sees_it(tmp_path, name):
    path = Path(shutil.copy(packaged_model() / name, tmp_path))
    content = path.read_bytes()
    threshold = content.index(str(Bundle.open(path).manifest.operating_points[0].threshold).encode())
    for at in (200, len(content) // 2, threshold + 3):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="copy it again"):
            Bundle.open(path)
    path.write_bytes(content[:1000] + content[2000:])
    with pytest.raises(BundleError, match="copy it again"):
        Bundle.open(path)
    path.write_bytes(content)
    assert Bundle.open(path).manifest.files[0].path == name


def test_a_precision_that_this_release_does_not_know_is_chosen_by_name(copy):
    entries = json.loads((copy / "manifest.json").read_text())["files"]
    entries = [
        entries[0] | {"path": "other.onnx", "precision": "int16x8"},
        *entries,
        entries[0] | {"path": "third.onnx", "precision": "fp16"},
    ]
    change(copy / "manifest.json", files=entries)
    bundle = Bundle.open(copy)
    assert bundle.find("onnx", "int16x8").path == "other.onnx"
    assert bundle.find("onnx").path == "model.onnx"  # fp32: `auto` takes the most exact one that it knows
    change(copy / "manifest.json", files=[entries[0], entries[3]])
    assert Bundle.open(copy).find("onnx").path == "third.onnx"
    change(copy / "manifest.json", files=entries[:1])
    assert Bundle.open(copy).find("onnx").path == "other.onnx"
    assert Bundle.open(copy).find("onnx", "fp32") is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_facts_is_refused(tmp_path, name):
    from cxr_edge.runtime.bundles.facts import read_facts

    (start, end), *_ = read_facts(packaged_model() / name).model
    (tmp_path / name).write_bytes((packaged_model() / name).read_bytes()[start:end])
    with pytest.raises(BundleError, match="no cxr-edge facts"):
        Bundle.open(tmp_path / name)


def test_a_file_under_the_suffix_of_another_format_is_refused(tmp_path):
    shutil.copy(packaged_model() / "model.int8.tflite", tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="no cxr-edge facts"):
        Bundle.open(tmp_path / "model.onnx")


def test_facts_that_unpack_to_more_than_a_manifest_are_refused(tmp_path):
    import zipfile

    path = tmp_path / "bomb.tflite"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * 200_000_000)
    with pytest.raises(BundleError, match="no cxr-edge facts"):
        Bundle.open(path)


@each_file
def test_a_changed_file_is_refused(copy, name, engine):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name}.*sha256"):
        load(copy, engine)
    for other in set(ENGINES) - {engine}:
        load(copy, other)  # the other file is none the worse


@each_file
def test_a_file_cut_short_or_missing_is_refused(copy, name, engine):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cut short"):
        load(copy, engine)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        load(copy, engine)


@each_file
def test_a_link_out_of_the_bundle_is_refused(copy, tmp_path, name, engine):
    outside = (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(outside)
    with pytest.raises(IntegrityError, match=rf"{name}: found a link to .*cp -rL"):
        load(copy, engine)
    (copy / name).unlink()
    outside.rename(copy / "elsewhere")
    (copy / name).symlink_to("elsewhere")  # stays inside
    load(copy, engine)


@pytest.mark.parametrize("name", ["manifest.json", "parity.json"])
def test_a_linked_manifest_or_parity_is_refused(copy, tmp_path, name):
    outside = (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(outside)
    with pytest.raises(IntegrityError, match=rf"{name}: found a link"):
        bundle = Bundle.open(copy)
        bundle.warning(bundle.manifest.files[0])


def test_a_link_in_a_circle_is_refused(copy):
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to("model.onnx")
    bundle = Bundle.open(copy)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        bundle.check(bundle.manifest.files[0])


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(BundleError, match="cxr-edge export"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="check the path"):
        Bundle.open("x" * 5000)


@each_file
def test_wrong_input_contract_is_refused(copy, name, engine):
    feed = json.loads((copy / "manifest.json").read_text())["input"]
    change(copy / "manifest.json", input=feed | {"height": 256})
    with pytest.raises(BundleError, match="its input is"):
        load(copy, engine)


def test_unknown_operating_point_lists_the_known():
    with pytest.raises(UsageError, match="balanced"):
        load(operating_point="bold")


def sidecar(**changes):
    file = {"path": "p.engine", "engine": "tensorrt", "precision": "fp16", "sha256": "0" * 64, "bytes": 3}
    return json.dumps({"file": file | changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "file: found"),
        ("{}", "file: found null, expected an object"),
        (sidecar(path="../p.engine"), r"file\.path: .*inside the bundle"),
        (sidecar(path="model.onnx"), r"file\.path: found model\.onnx, expected p\.engine"),
        (sidecar(engine="onnx"), r"file\.engine: found onnx, expected tensorrt"),
        (sidecar(sha256=3), r"file\.sha256: found 3, expected 64 hexadecimal digits"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_named(copy, text, says):
    (copy / "p.engine.json").write_text(text)
    with pytest.raises(BundleError, match=rf"p\.engine\.json: .*{says}.*rebuild the plan"):
        Bundle.open(copy)


def test_a_sidecar_vouches_for_its_own_plan(copy):
    (copy / "p.engine.json").write_text(sidecar())
    assert Bundle.open(copy).find("tensorrt").path == "p.engine"


def warned(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(folder, ENGINES[0])
    return [str(w.message) for w in caught if issubclass(w.category, CxrEdgeWarning)]


def change_parity(folder, everywhere=None, **row):
    record = json.loads((folder / "parity.json").read_text()) | (everywhere or {})
    record["files"] = [entry | row for entry in record["files"]]
    (folder / "parity.json").write_text(json.dumps(record))


def test_load_warns_unless_a_full_run_under_the_default_gates_passed(copy):
    assert warned(copy) == []  # a record of before these fields
    change_parity(copy, {"complete": True}, default_gates=True)
    assert warned(copy) == []
    change_parity(copy, {"complete": False, "images": 2})
    assert "verified on 2 images only" in warned(copy)[0]
    change_parity(copy, {"complete": True}, default_gates=False)
    assert "looser gates" in warned(copy)[0]
    change_parity(copy, default_gates=True, passed=False)
    assert "failed its gate" in warned(copy)[0]
    change_parity(copy, passed=True, sha256="f" * 64)
    assert "does not mention this file" in warned(copy)[0]
    (copy / "parity.json").unlink()
    assert warned(copy) == []


def test_a_lone_file_is_not_judged_by_a_strange_parity_json(tmp_path):
    lone = shutil.copy(packaged_model() / "model.int8.tflite", tmp_path)
    (tmp_path / "parity.json").write_text("{}")
    assert Bundle.open(lone).warning(Bundle.open(lone).manifest.files[0]) is None


@pytest.mark.parametrize("text", ["", "[]", "3", '{"files": 3}', '{"files": [3]}', '{"files": [{"sha256": "x"}]}'])
def test_a_parity_json_that_cannot_be_used_says_what_to_do(copy, text):
    (copy / "parity.json").write_text(text)
    bundle = Bundle.open(copy)
    with pytest.raises(BundleError, match=r"parity\.json: .*run `cxr-edge verify` again"):
        bundle.warning(bundle.manifest.files[0])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(copy):
    (copy / "manifest.json").chmod(0)
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        Bundle.open(copy)

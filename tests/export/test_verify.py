"""`cxr-edge verify` on real files: sound ones pass, broken ones fail with the right reason."""

import json
import shutil
from dataclasses import replace

import pytest

from cxr_edge.runtime.bundle import Bundle, sha256

LOOSE = "[fp16]\nprobability_max = 1\nflip_rate = 1\n[int8]\nflip_rate = 1\nauc_drop = 1\nsensitivity_drop = 1\n"


@pytest.fixture
def gates(tmp_path):
    """Limits that only fp32 can break: the small network's other files are not what is tested here."""
    path = tmp_path / "gates.toml"
    path.write_text(LOOSE + "heatmap_rank_correlation = -1\n")
    return path


@pytest.fixture
def copy(bundle, run, tmp_path):
    """A bundle to break, beside its run."""
    shutil.copytree(run, tmp_path / "run")
    return shutil.copytree(bundle, tmp_path / "bundle")


def forge(folder, name, content):
    """Put another file in place of one, and let the manifest vouch for it."""
    (folder / name).write_bytes(content)
    path = folder / "manifest.json"
    manifest = Bundle.open(folder).manifest
    size, digest = len(content), sha256(folder / name)
    files = tuple(replace(f, sha256=digest, bytes=size) if f.path == name else f for f in manifest.files)
    path.write_text(replace(manifest, files=files).to_json())


def verdicts(out):
    return {row["path"]: row for row in json.loads(out)["files"]}


def test_a_sound_bundle_passes_and_is_recorded(cli, copy, phantoms, gates):
    code, out, err = cli("verify", copy, "--data", phantoms, "--gates", gates, "--format", "json")
    rows = verdicts(out)
    assert code == 0, err
    assert len(rows) == 5 and all(row["passed"] for row in rows.values())
    for name in ("model.onnx", "model.fp32.tflite"):
        assert rows[name]["logit_max"] <= 1e-3 and set(rows[name]["flips"].values()) == {0}
        assert rows[name]["heatmap_rank_correlation"] >= 0.9999
    assert rows["model.fp32.tflite"]["backend"] == "CPU, XNNPACK delegate"
    assert json.loads(out)["preprocessing"]["flips"] <= 2
    bundle = Bundle.open(copy)
    assert bundle.verified(bundle.find("onnx")) is True
    code, out, _ = cli("inspect", copy)
    assert "passed" in out


def test_the_table_names_what_failed_and_exits_1(cli, copy, phantoms, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text("[int8]\nheatmap_rank_correlation = 1.01\n")
    code, out, _ = cli("verify", copy, "--data", phantoms, "--gates", strict, "--limit", 20)
    assert code == 1
    assert "FAILED model.int8.tflite: heatmap_rank_correlation" in out and "20 images" in out


def test_changed_and_truncated_files_fail_by_their_hash(cli, copy, phantoms, gates):
    onnx, tflite = copy / "model.onnx", copy / "model.fp32.tflite"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    tflite.write_bytes(tflite.read_bytes()[:5000])
    code, out, _ = cli("verify", copy, "--data", phantoms, "--gates", gates, "--limit", 10, "--format", "json")
    rows = verdicts(out)
    assert code == 1
    assert "sha256 differs" in rows["model.onnx"]["error"] and "cut short" in rows["model.fp32.tflite"]["error"]
    assert rows["model.fp16.onnx"]["passed"]


@pytest.mark.parametrize("fault", ["wrong normalisation", "one layer perturbed"])
def test_a_wrong_export_is_caught_though_its_hash_is_right(cli, copy, phantoms, gates, fault):
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copy / "model.onnx")
    if fault == "wrong normalisation":
        offset = next(t for t in model.graph.initializer if abs(numpy_helper.to_array(t).ravel()[0]) == 127.5)
        offset.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(offset) * 0.9, offset.name))
    else:
        kernel = max(model.graph.initializer, key=lambda t: numpy_helper.to_array(t).size)
        values = numpy_helper.to_array(kernel)
        noise = np.random.default_rng(0).normal(0, 0.05 * values.std(), values.shape)
        kernel.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), kernel.name))
    forge(copy, "model.onnx", model.SerializeToString())
    code, out, _ = cli("verify", copy, "--data", phantoms, "--gates", gates, "--format", "json")
    failed = [c["name"] for c in verdicts(out)["model.onnx"]["checks"] if not c["passed"]]
    assert code == 1 and "logit_max" in failed


def test_another_run_is_not_the_reference(cli, copy, phantoms, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    (other / "model.keras").write_bytes(b"another network")
    code, _, err = cli("verify", copy, "--data", phantoms, "--run", other)
    assert code == 2 and "not the network" in err
    record["model_sha256"] = sha256(other / "model.keras")
    (other / "run.json").write_text(json.dumps(record))
    code, _, err = cli("verify", copy, "--data", phantoms, "--run", other)
    assert code == 2 and "exported from" in err
    shutil.rmtree(tmp_path / "run")
    code, _, err = cli("verify", copy, "--data", phantoms)
    assert code == 2 and "--run" in err

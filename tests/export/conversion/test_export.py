import json
from dataclasses import replace

import pytest

from cxr_edge.common.dataset import fingerprint, read_dataset
from cxr_edge.export.conversion.build import model_card
from cxr_edge.export.conversion.tensorrt import build_plan, is_strongly_typed
from cxr_edge.runtime import Bundle, MissingExtraError
from cxr_edge.runtime.bundles.bundle import ModelFile


def test_the_manifest_names_every_file_and_its_provenance(bundle, run, phantoms):
    manifest = Bundle.open(bundle).manifest
    assert {f.path for f in manifest.all_files} | {"manifest.json", "MODEL_CARD.md", "golden"} == {
        p.name for p in bundle.iterdir()
    }
    record = json.loads((run / "run.json").read_text())
    assert manifest.training["data"] == record["data"]
    assert manifest.training["model_sha256"] == record["model_sha256"]
    assert manifest.training["run"] == "../run"
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "not a medical device" in card and "model.int8.tflite" in card


def test_the_card_has_the_holdout_beside_validation(bundle, run):
    record = json.loads((run / "run.json").read_text())
    manifest = Bundle.open(bundle).manifest
    validation, holdout = (record["metrics"][part]["auc"] for part in ("validation", "holdout"))
    card = model_card(manifest)
    assert f"| auc | {validation:.4f} | {holdout:.4f} |" in card and "the hold-out chose nothing" in card
    assert f"holdout, {record['split']['holdout_images']} images |\n|---|---|---|\n" in card
    without = replace(
        manifest, training=manifest.training | {"metrics": {"validation": record["metrics"]["validation"]}}
    )
    card = model_card(without)
    assert f"| auc | {validation:.4f} |\n" in card and "hold-out" not in card and "holdout" not in card


def test_calibration_leaves_validation_patients_out(bundle, run, phantoms):
    held_out = set(json.loads((run / "run.json").read_text())["split"]["validation_files"])
    allowed = [i for i in read_dataset(phantoms, ("train",)) if f"{i.path.parent.name}/{i.path.name}" not in held_out]
    calibration = Bundle.open(bundle).manifest.calibration
    assert calibration["images"] == 32 <= len(allowed)
    assert calibration["fingerprint"] != fingerprint(allowed)  # a sample of them


def test_a_part_of_the_files_can_be_chosen(cli, run, tmp_path):
    code, out, _ = cli("export", run, "-o", tmp_path / "b", "--format", "onnx", "--precision", "fp32")
    assert code == 0 and "model.onnx" in out and "tflite" not in out
    code, out, _ = cli("export", run, "-o", tmp_path / "c", "--file", "model.fp16.tflite", "--file", "model.onnx")
    assert code == 0 and {f.path for f in Bundle.open(tmp_path / "c").manifest.files} == {
        "model.fp16.tflite",
        "model.onnx",
    }


def test_usage_errors_say_what_to_do(cli, run, bundle, tmp_path):
    assert "--calib" in cli("export", run, "-o", tmp_path / "b")[2]
    assert "-o" in cli("export", run)[2]
    assert "cxr-edge train" in cli("export", tmp_path, "-o", tmp_path / "b")[2]
    assert "tensorrt" in cli("export", bundle, "-o", tmp_path / "b")[2]
    (tmp_path / "precious.txt").touch()
    code, _, err = cli("export", run, "-o", tmp_path, "--format", "onnx", "--precision", "fp32")
    assert code == 2 and "not a bundle" in err and (tmp_path / "precious.txt").exists()


def test_options_of_tensorrt_are_not_passed_over_in_silence(cli, run, tmp_path):
    code, _, err = cli("export", run, "-o", tmp_path / "b", "--file", "model.onnx", "--max-batch", 4)
    assert code == 2 and "add --format tensorrt" in err and not (tmp_path / "b").exists()


def test_tensorrt_says_plainly_what_it_lacks(cli, bundle):
    code, _, err = cli("export", bundle, "--format", "tensorrt")
    assert code == 2 and "cxr-edge[tensorrt]" in err
    with pytest.raises(MissingExtraError):
        build_plan(Bundle.open(bundle))


class Release:
    """A TensorRT release as far as the choice of route looks at it."""

    def __init__(self, version, has_fp16_flag):
        self.__version__ = version
        self.BuilderFlag = type("BuilderFlag", (), {"FP16": 0} if has_fp16_flag else {})


@pytest.mark.parametrize(
    ("version", "has_fp16_flag", "typed"),
    [("10.3.0", True, False), ("10.9.0.34", True, False), ("10.12.0.36", True, True), ("11.4.0.106", False, True)],
)
def test_each_tensorrt_release_takes_its_route(version, has_fp16_flag, typed):
    assert is_strongly_typed(Release(version, has_fp16_flag)) is typed


def test_a_plan_beside_its_sidecar_belongs_to_the_bundle(bundle, tmp_path):
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    entry = ModelFile("model.fp16.engine", "tensorrt", "fp16", "0" * 64, 3)
    (copy / "model.fp16.engine").write_bytes(b"abc")
    (copy / "model.fp16.engine.json").write_text(json.dumps({"file": entry.__dict__, "target": {}}))
    assert Bundle.open(copy).find("tensorrt", "fp16") == entry

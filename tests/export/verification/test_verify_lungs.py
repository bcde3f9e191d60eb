"""`cxr-edge verify` of a network that finds lungs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion.build import build_bundle
from cxr_edge.runtime.bundles.bundle import Bundle, LungGrid, sha256
from cxr_edge.train.fit.models import build

fold = Lazy("cxr_edge.train.fit.fold")

FILES = ["model.onnx", "model.fp16.tflite", "model.int8.tflite", "model.mediapipe.tflite"]


@pytest.fixture(scope="module")
def lungs_bundle(run, phantoms, tmp_path_factory):
    """A bundle of an untrained network with a smooth input, whose lungs cover about half of the image."""
    import keras

    folder = shutil.copytree(run, tmp_path_factory.mktemp("lungs") / "run")
    keras.utils.set_random_seed(0)
    network = fold.deployable(build("cnn", "none", lungs=True, smooth=True))
    last = network.get_layer("lungs")
    logits = np.asarray(network(read_pixels(read_dataset(phantoms, ("test",))).astype(np.float32))[1])
    kernel, bias = last.get_weights()
    last.set_weights([kernel * 4 / logits.std(), (bias - np.median(logits)) * 4 / logits.std()])
    network.save(folder / "model.keras")
    facts = {"model_sha256": sha256(folder / "model.keras"), "lungs": {"height": 28, "width": 28}}
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | facts))
    build_bundle(folder, folder.parent / "bundle", phantoms, FILES, 32, step=lambda name: None)
    return folder.parent / "bundle"


def test_a_smooth_input_leaves_no_transposes_in_the_onnx_graph(lungs_bundle):
    """The image has one channel, so that a reshape brings it into ONNX's order; the lungs need one transpose."""
    import onnx

    nodes = onnx.load(lungs_bundle / "model.onnx").graph.node
    assert sum(node.op_type == "Transpose" for node in nodes) <= 1


def rows(out):
    return {row["path"]: row for row in json.loads(out)["files"]}


def test_lungs_are_declared_compared_and_golden(cli, lungs_bundle, phantoms, tmp_path):
    assert Run.open(lungs_bundle.parent / "run").lungs == Bundle.open(lungs_bundle).manifest.lungs == LungGrid(28, 28)
    table = tmp_path / "table.md"
    code, out, err = cli(
        "verify", lungs_bundle, "--data", phantoms, "--limit", 20, "--format", "json", "--markdown", table
    )
    assert code in (0, 1), err
    files = rows(out)
    checked = {name: {c["name"]: c for c in row["checks"]} for name, row in files.items()}
    for name, least in (("model.onnx", 0.9999), ("model.fp16.tflite", 0.999), ("model.int8.tflite", 0.95)):
        assert files[name]["lungs_dice"] >= least and checked[name]["lungs_dice"]["value"] >= least
    assert files["model.onnx"]["lungs_max"] <= 1e-4 < files["model.int8.tflite"]["lungs_max"]
    companion = files["model.mediapipe.tflite"]
    assert companion["lungs_dice"] is None and "lungs_dice" not in checked["model.mediapipe.tflite"]
    assert "lungs Dice" in table.read_text()
    golden = json.loads((lungs_bundle / "golden" / "golden.json").read_text())["files"]
    assert all(np.shape(file["outputs"]["chest"]["lungs"]) == (28, 28) for file in golden.values())


def test_lungs_that_the_manifest_hides_fail(cli, lungs_bundle, phantoms):
    manifest = Bundle.open(lungs_bundle).manifest
    try:
        (lungs_bundle / "manifest.json").write_text(replace(manifest, lungs=None).to_json())
        code, out, _ = cli("verify", lungs_bundle, "--data", phantoms, "--limit", 4, "--format", "json")
    finally:
        (lungs_bundle / "manifest.json").write_text(manifest.to_json())
    assert code == 1 and all("found no `lungs` in its manifest" in row["error"] for row in rows(out).values())


def test_rows_of_predict_tell_of_the_lungs(cli, lungs_bundle, xray, tmp_path):
    code, out, err = cli("predict", "-m", lungs_bundle, xray, "--format", "csv")
    assert code == 0, err
    header, line = out.splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert row["lungs_found"] in ("both", "one", "none", "cut off") and 0 <= float(row["evidence_in_lungs"] or 0) <= 1
    code, _, err = cli("explain", "-m", lungs_bundle, xray, "-o", tmp_path / "pictures")
    assert code == 0 and len(list((tmp_path / "pictures").glob("*.png"))) == 1, err

"""A plan is refused wherever its sidecar does not vouch for it; what runs one is in tests/gpu."""

import json
from dataclasses import replace

import pytest

from cxr_edge.runtime import Bundle
from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.engines.tensorrt import PlanOptions, Sidecar, Target, _rebuild, sidecar_path
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.predictor import packaged_model

HERE = Target("10.3.0.26", "Orin", "8.7", "Linux aarch64")


@pytest.fixture
def manifest():
    return Bundle.open(packaged_model()).manifest


@pytest.fixture
def sidecar(manifest):
    onnx = next(file for file in manifest.files if file.path == "model.onnx")
    plan = ModelFile("model.fp16.engine", "tensorrt", "fp16", "0" * 64, 3)
    return Sidecar(plan, HERE, PlanOptions(), onnx.path, onnx.sha256, False)


def test_the_machine_that_built_a_plan_runs_it(sidecar, manifest, tmp_path):
    plan = tmp_path / "model.fp16.engine"
    sidecar_path(plan).write_text(sidecar.to_json())
    assert Sidecar.read(plan) == sidecar
    assert sidecar.differences(HERE, manifest) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tensorrt": "10.3.0.30"}, "TensorRT 10.3.0.26, this is 10.3.0.30"),
        ({"gpu": "Thor"}, "this is Thor"),
        ({"compute_capability": "8.6"}, "this is Orin (8.6)"),
        ({"platform": "Linux x86_64"}, "built on Linux aarch64, this is Linux x86_64"),
    ],
)
def test_another_machine_is_refused(sidecar, manifest, change, says):
    (difference,) = sidecar.differences(replace(HERE, **change), manifest)
    assert says in difference


def test_another_onnx_file_is_refused(sidecar, manifest):
    exported_anew = replace(sidecar, onnx_sha256="f" * 64)
    assert exported_anew.differences(HERE, manifest) == ["built of another model.onnx than the bundle's"]
    assert sidecar.differences(HERE, replace(manifest, files=())) == ["built of another model.onnx than the bundle's"]


@pytest.mark.parametrize(
    ("release", "runs"),
    [("10.3.0.26", True), ("10.3.0.30", True), ("10.16.1.11", True), ("10.2.0", False), ("11.4.0.106", False)],
)
def test_a_version_compatible_plan_runs_on_later_releases_of_its_major_version(sidecar, manifest, release, runs):
    compatible = replace(sidecar, options=PlanOptions(version_compatible=True))
    assert (not compatible.differences(replace(HERE, tensorrt=release), manifest)) is runs
    assert compatible.differences(replace(HERE, gpu="Thor"), manifest)


@pytest.mark.parametrize(("capability", "runs"), [("8.0", True), ("12.1", True), ("7.5", False)])
def test_a_hardware_compatible_plan_runs_from_ampere_on(sidecar, manifest, capability, runs):
    compatible = replace(sidecar, options=PlanOptions(hardware_compatible=True))
    there = replace(HERE, gpu="another", compute_capability=capability)
    assert (not compatible.differences(there, manifest)) is runs
    assert compatible.differences(replace(there, tensorrt="10.4.0"), manifest)
    assert compatible.differences(replace(there, platform="Linux x86_64"), manifest)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"file": {}, "target": {}}'])
def test_a_sidecar_that_says_less_is_refused(tmp_path, text):
    plan = tmp_path / "model.fp16.engine"
    sidecar_path(plan).write_text(text)
    with pytest.raises(BundleError, match="rebuild it: cxr-edge export"):
        Sidecar.read(plan)


def test_a_sidecar_of_another_cxr_edge_is_refused(sidecar, tmp_path):
    plan = tmp_path / "model.fp16.engine"
    sidecar_path(plan).write_text(json.dumps({**json.loads(sidecar.to_json()), "more": 1}))
    with pytest.raises(BundleError, match="more"):
        Sidecar.read(plan)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"onnx": "../model.onnx"}, "onnx: "),
        ({"target": {**vars(HERE), "tensorrt": "ten"}}, "target.tensorrt: "),
        ({"options": {"max_batch": 0}}, "options.max_batch: "),
        ({"strongly_typed": "no"}, "strongly_typed: "),
    ],
)
def test_a_field_of_a_sidecar_that_cannot_be_used_is_named(sidecar, tmp_path, changes, field):
    plan = tmp_path / "model.fp16.engine"
    sidecar_path(plan).write_text(json.dumps({**json.loads(sidecar.to_json()), **changes}))
    with pytest.raises(BundleError, match=f"{field}found .*, expected .*rebuild it"):
        Sidecar.read(plan)


def test_the_command_that_builds_anew_keeps_the_options(tmp_path):
    assert _rebuild(tmp_path / "p").endswith(f"cxr-edge export {tmp_path} --format tensorrt")
    options = PlanOptions(8, version_compatible=True, hardware_compatible=True)
    flags = "--max-batch 8 --version-compatible --hardware-compatible"
    assert _rebuild(tmp_path / "p", options).endswith(f"--format tensorrt {flags}")

"""Builds plans on this machine's GPU and runs them: `pytest -m gpu`. Skipped where there is none."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.export.conversion.tensorrt import build_plan, timing_cache
from cxr_edge.runtime import Bundle, load
from cxr_edge.runtime.engines import open_engine
from cxr_edge.runtime.engines.tensorrt import PlanOptions, Sidecar, sidecar_path, this_target
from cxr_edge.runtime.errors import CxrEdgeError, EngineError, IntegrityError

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    try:
        return this_target()
    except CxrEdgeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pixels(phantoms):
    return read_pixels(read_dataset(phantoms)[::5])[:10]


@pytest.fixture(scope="module")
def built(bundle, tmp_path_factory):
    """A copy of the bundle with a plan for batches of 4; its timing cache in a folder of its own."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("gpu") / "bundle")
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        build_plan(Bundle.open(folder), PlanOptions(max_batch=4), lines.append)
        assert timing_cache(this_target()).stat().st_size > 0
        assert lines[0].startswith("trtexec ")
    return folder


def engine(folder, name, precision):
    bundle = Bundle.open(folder)
    return open_engine(bundle, bundle.find(name, precision))


def test_a_plan_decides_as_the_fp32_onnx_file(built, pixels):
    plan, onnx = engine(built, "tensorrt", "fp16").run(pixels), engine(built, "onnx", "fp32").run(pixels)
    assert np.abs(plan.probability - onnx.probability).max() < 0.02
    np.testing.assert_allclose(plan.logit, onnx.logit, rtol=0.02, atol=0.05)
    np.testing.assert_allclose(plan.heatmap, onnx.heatmap, rtol=0.05, atol=0.02 * onnx.heatmap.max())
    np.testing.assert_allclose(plan.novelty, onnx.novelty, rtol=0.05, atol=0.05)
    assert all(getattr(plan, name).dtype == np.float32 for name in ("probability", "logit", "heatmap", "novelty"))


def test_a_batch_gives_what_single_images_give(built, pixels):
    plan = engine(built, "tensorrt", "fp16")
    together, alone = plan.run(pixels), [plan.run(image[np.newaxis]) for image in pixels]  # 10 = 4 + 4 + 2
    assert together.heatmap.shape == (10, 7, 7)
    np.testing.assert_allclose(together.logit, np.concatenate([one.logit for one in alone]), atol=0.02)
    first = together.logit.copy()
    plan.run(pixels[::-1])
    np.testing.assert_array_equal(together.logit, first)  # its own memory, not the engine's


def test_the_runtime_chooses_the_plan(built, xray):
    predictor = load(built)
    assert predictor.file.engine == "tensorrt" and predictor.engine.backend.startswith("CUDA, ")
    assert 0 <= predictor.predict(xray).probability <= 1


def test_engines_come_and_go_without_keeping_memory(built, pixels):
    from cuda.bindings import runtime as cudart

    engine(built, "tensorrt", "fp16").run(pixels)
    before = cudart.cudaMemGetInfo()[1]
    for _ in range(20):
        engine(built, "tensorrt", "fp16").run(pixels)
    assert before - cudart.cudaMemGetInfo()[1] < 32 << 20


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, target=replace(s.target, tensorrt="10.0.0")),
        lambda s: replace(s, target=replace(s.target, gpu="another")),
        lambda s: replace(s, onnx_sha256="0" * 64),
    ],
)
def test_a_plan_of_something_else_is_refused(built, tmp_path, change):
    folder = shutil.copytree(built, tmp_path / "bundle")
    plan = folder / "model.fp16.engine"
    sidecar_path(plan).write_text(change(Sidecar.read(plan)).to_json())
    with pytest.raises(EngineError, match=r"rebuild it: cxr-edge export .* --max-batch 4"):
        engine(folder, "tensorrt", "fp16")


def test_a_changed_plan_is_never_loaded(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "bundle")
    plan = folder / "model.fp16.engine"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(IntegrityError):
        engine(folder, "tensorrt", "fp16")


def test_a_version_compatible_plan_runs(built, pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = shutil.copytree(built, tmp_path / "bundle")
    build_plan(Bundle.open(folder), PlanOptions(version_compatible=True))
    assert json.loads(sidecar_path(folder / "model.fp16.engine").read_text())["options"]["version_compatible"]
    plan, onnx = engine(folder, "tensorrt", "fp16").run(pixels), engine(folder, "onnx", "fp32").run(pixels)
    assert np.abs(plan.probability - onnx.probability).max() < 0.02


def test_the_command_builds_checks_and_shows(cli, built, phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = shutil.copytree(built, tmp_path / "bundle")
    code, out, err = cli("export", folder, "--format", "tensorrt", "--calib", phantoms, "--calib-images", 4)
    assert code == 0 and "model.fp16.engine" in out
    assert "largest activations" in err and "trtexec" in err

"""Two sides in real processes, on the packaged model."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxr_edge.benchmarks.compare import against as module
from cxr_edge.benchmarks.compare.against import against, pairs
from cxr_edge.benchmarks.compare.process import started
from cxr_edge.benchmarks.compare.sides import Side, other_side
from cxr_edge.benchmarks.compare.turns import Plan
from cxr_edge.runtime.errors import BundleError, EngineError, UsageError
from cxr_edge.runtime.predictor import packaged_model

ROOT = Path(__file__).parents[3]
DECIDES = "        return self._predict(image, name)[1]\n"
needs_repository = pytest.mark.skipif(
    subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).returncode != 0,
    reason="these tests do not run in a git repository",
)


@pytest.fixture
def short(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(module, "PLAN", Plan(3, 4))


@pytest.mark.slow
def test_a_side_with_twice_the_work_is_slower(images, tmp_path, short):
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime")
    path = tmp_path / "runtime" / "cxr_edge" / "runtime" / "predictor.py"
    source = path.read_text()
    assert source.count(DECIDES) == 1
    path.write_text(source.replace(DECIDES, "        self._predict(image, name)\n" + DECIDES))
    fast, seen = Side("fast", packaged_model(), ROOT), []
    slow = replace(fast, name="slow", code=tmp_path)
    files, _ = pairs(slow, fast, "litert")
    (found,) = against(slow, fast, files, sorted(images.iterdir()), 1, 1.2, lambda *step: seen.append(step))
    # Other work stretches the time by the clock, but hardly that of the processor.
    assert found.verdict == "slower" and found.wall.ratio > 1.5 and 1.5 < found.cpu.ratio < 2.7
    assert found.flips == 0 and found.max_difference == 0
    assert np.shape(found.samples_ms) == (3, 4, 2, 3) and np.shape(found.control_ms) == (3, 4, 2)
    assert seen[:3] == [("in turns, model.int8.tflite", i, 3) for i in (1, 2, 3)]


@pytest.mark.slow
def test_what_is_not_clear_is_measured_again_for_longer(images, short):
    here, stages = Side("here", packaged_model()), []
    files, _ = pairs(here, here, "litert")
    # Equal sides are never clear of a limit of 1.
    (found,) = against(here, here, files, sorted(images.iterdir()), 1, 1.000001, lambda *step: stages.append(step))
    assert found.blocks in (3, 9)
    assert (found.blocks == 9) == any(stage.startswith("longer run") for stage, *_ in stages)
    assert found.blocks == 9 or found.verdict in ("held", "slower")


@pytest.mark.slow
def test_bench_against_writes_its_record(images, cli, tmp_path, short):
    output = tmp_path / "against.json"
    arguments = ["bench", images, "--against", packaged_model(), "--engine", "litert", "--max-slowdown", 10]
    code, out, err = cli(*arguments, "-o", output)
    assert code == 0 and "held: model.int8.tflite: ×" in out and "control ×" in out, out + err
    record = json.loads(output.read_text())
    (row,) = record["comparisons"]
    assert record["kind"] == "against" and row["verdict"] == "held" and len(row["samples_ms"]) == 3


@pytest.mark.slow
@needs_repository
def test_a_revision_runs_its_own_code_and_model(images, short):
    with other_side("HEAD", packaged_model(), packaged=True) as there:
        assert there.code is not None and there.bundle.is_relative_to(there.code)
        files, _ = pairs(Side("here", packaged_model()), there, "litert")
        (found,) = against(there, there, files, sorted(images.iterdir()), 1, 10, lambda *_: None)
        assert found.verdict == "held"
        folder = there.code
    assert not folder.exists()


def test_a_checkout_runs_its_own_code(tmp_path):
    with other_side(str(ROOT), packaged_model(), packaged=True) as there:
        assert there.code == ROOT and there.bundle == ROOT / "runtime" / "cxr_edge" / "runtime" / "model"
        assert ROOT / "runtime" in there.path


@needs_repository
def test_a_name_that_means_nothing_is_refused():
    with pytest.raises(
        UsageError, match=r"no-such-thing: expected a bundle, a checkout or a git revision .* found none"
    ):
        other_side("no-such-thing", packaged_model(), packaged=True).__enter__()


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="manifest"):
        other_side(str(tmp_path), packaged_model(), packaged=True).__enter__()


def test_bundles_without_a_common_file_are_refused(tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(packaged_model(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["engine"] == "onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=r"no file in common .* has no file for litert in int8"):
        pairs(Side("here", packaged_model()), Side("there", folder), "litert")


def test_code_from_elsewhere_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"imported cxr_edge from /usr/lib/x\.py, expected it below"):
        Side("other", packaged_model(), tmp_path).check_code("/usr/lib/x.py")


def test_a_process_that_fails_says_why(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("print('ready', flush=True)\ninput()\nraise SystemExit('the disk is full')\n")
    with started("side", program, (), sys.executable) as process, pytest.raises(EngineError) as error:
        process.ask("")
    assert "side: the process" in str(error.value) and "the disk is full" in str(error.value)

"""The check that a worker makes before it answers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cxr_edge.runtime import EngineError, IntegrityError, load
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.serve.selftest import check_model


@pytest.fixture
def golden(tmp_path):
    """A copy of the packaged model with one golden input, in the form that `export` writes."""
    folder = tmp_path / "bundle"
    shutil.copytree(packaged_model(), folder, ignore=shutil.ignore_patterns("golden"))
    predictor = load(folder, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    (folder / "golden").mkdir()
    (folder / "golden" / "noise.bin").write_bytes(pixels.tobytes())
    found = predictor.engine.run(pixels[np.newaxis, ..., np.newaxis])
    outputs = {name: getattr(found, name)[0].tolist() for name in found.given}
    entry = {"sha256": predictor.file.sha256, "tolerance": dict.fromkeys(outputs, 0.05), "outputs": {"noise": outputs}}
    write(folder, {predictor.file.path: entry})
    return folder


def write(folder, files: dict) -> None:
    (folder / "golden" / "golden.json").write_text(json.dumps({"schema_version": 1, "files": files}))


def edit(folder, change) -> None:
    path = folder / "golden" / "golden.json"
    data = json.loads(path.read_text())
    change(next(iter(data["files"].values())))
    path.write_text(json.dumps(data))


def test_golden_inputs_are_compared(golden):
    assert check_model(load(golden, threads=1)) == "golden"
    edit(golden, lambda entry: entry["outputs"]["noise"].update(logit=entry["outputs"]["noise"]["logit"] + 0.1))
    with pytest.raises(EngineError, match=r"output logit of the golden input noise differs by 0\.1"):
        check_model(load(golden, threads=1))


def test_a_damaged_golden_input_is_named(golden):
    (golden / "golden" / "noise.bin").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"noise.bin: 5 bytes"):
        check_model(load(golden, threads=1))


def test_golden_outputs_of_another_file_are_not_used(golden):
    edit(golden, lambda entry: entry.update(sha256="0" * 64))
    assert check_model(load(golden, threads=1)) == "plausible"


def test_the_packaged_model_has_golden_inputs():
    assert check_model(load(threads=1)) == "golden"


def test_without_golden_inputs_the_answer_must_be_plausible(golden, monkeypatch):
    shutil.rmtree(golden / "golden")
    predictor = load(golden, threads=1)
    assert check_model(predictor) == "plausible"
    true_run = predictor.engine.run

    def wrong(images):
        outputs = true_run(images)
        return replace(outputs, probability=1 - outputs.probability)

    monkeypatch.setattr(predictor.engine, "run", wrong)
    with pytest.raises(EngineError, match="not plausible"):
        check_model(predictor)

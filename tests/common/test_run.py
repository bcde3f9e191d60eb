"""The run folder: what `Run.open` refuses, and what a run says of itself; no training needed."""

import json
import shutil

import numpy as np
import pytest

from cxr_edge.common.run import Novelty, Run
from cxr_edge.runtime import BundleError, IntegrityError
from cxr_edge.runtime.bundles.bundle import sha256

POINT = {"name": "balanced", "threshold": 0.4, "chosen": "by hand"}


@pytest.fixture
def folder(tmp_path):
    """A run folder with all facts; its files hold no network."""
    (tmp_path / "model.keras").write_bytes(b"network")
    (tmp_path / "novelty.npz").write_bytes(b"novelty")
    record = {
        "schema_version": 1,
        "config": {"arch": "cnn"},
        "data": {"fingerprint": "f" * 64},
        "input": {"height": 96, "width": 64},
        "heatmap": {"stride": 32.0, "origin": 15.5},
        "operating_points": [POINT],
        "temperature": 1.7,
        "split": {"validation_files": ["NORMAL/a.png"], "holdout_files": ["PNEUMONIA/b.png"]},
        "model_sha256": sha256(tmp_path / "model.keras"),
        "novelty_sha256": sha256(tmp_path / "novelty.npz"),
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def change(folder, **facts):
    """Write other facts; those that are None are left out."""
    record = json.loads((folder / "run.json").read_text()) | facts
    (folder / "run.json").write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_a_run_says_what_its_record_holds(folder):
    run = Run.open(folder)
    assert (run.arch, run.temperature, run.fingerprint) == ("cnn", 1.7, "f" * 64)
    assert (run.input.height, run.input.width) == (96, 64)
    assert (run.geometry.stride, run.geometry.origin) == (32.0, 15.5)
    assert [point.name for point in run.operating_points] == ["balanced"]
    assert run.validation_files == {"NORMAL/a.png"} and run.holdout_files == {"PNEUMONIA/b.png"}
    assert run.held_out == {"NORMAL/a.png", "PNEUMONIA/b.png"}


def test_a_run_without_a_hold_out_holds_out_its_validation_images(folder):
    change(folder, split={"validation_files": ["NORMAL/a.png"]})
    run = Run.open(folder)
    assert run.holdout_files == frozenset() and run.held_out == {"NORMAL/a.png"}


def test_a_folder_without_a_record_is_no_run(folder):
    (folder / "run.json").unlink()
    with pytest.raises(BundleError, match=r"run\.json.*cxr-edge train"):
        Run.open(folder)


def test_a_record_that_is_not_json_is_refused(folder):
    (folder / "run.json").write_text("{")
    with pytest.raises(BundleError, match=r"run\.json: not valid JSON"):
        Run.open(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_record_of_another_schema_is_refused(folder, version):
    change(folder, schema_version=version)
    with pytest.raises(BundleError, match=rf"run\.json: found schema_version {version}, expected 1"):
        Run.open(folder)


@pytest.mark.parametrize("name", ["model.keras", "novelty.npz"])
def test_a_changed_file_is_refused(folder, name):
    (folder / name).write_bytes(b"another")
    with pytest.raises(IntegrityError, match=rf"{name}: .*sha256"):
        Run.open(folder)


@pytest.mark.parametrize("key", ["config", "data", "input", "heatmap", "operating_points", "temperature", "split"])
def test_an_incomplete_record_is_refused(folder, key):
    change(folder, **{key: None})
    with pytest.raises(BundleError, match=rf"run\.json: incomplete.*{key}"):
        Run.open(folder)


@pytest.mark.parametrize("facts", [{"temperature": "warm"}, {"operating_points": [{"name": "x"}]}, {"split": []}])
def test_facts_of_another_type_are_refused(folder, facts):
    change(folder, **facts)
    with pytest.raises(BundleError, match=r"run\.json: incomplete"):
        Run.open(folder)


def test_a_run_may_be_moved(folder, tmp_path_factory):
    moved = shutil.copytree(folder, tmp_path_factory.mktemp("moved") / "run")
    assert Run.open(moved).record == Run.open(folder).record


@pytest.mark.parametrize("lacks", ["model.keras", "novelty.npz"])
def test_a_run_that_lacks_a_file_names_it(tmp_path, lacks):
    for name in {"model.keras", "novelty.npz"} - {lacks}:
        (tmp_path / name).write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    record = {"schema_version": 1, "model_sha256": empty, "novelty_sha256": empty}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match=rf"{lacks}: missing; copy the whole run"):
        Run.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_run_record_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BundleError, match=r"run\.json: found schema_version None, expected 1"):
        Run.open(tmp_path)


def test_only_what_the_directions_miss_counts():
    none = np.zeros((5, 0), np.float32), np.zeros(0, np.float32)
    novelty = Novelty(np.full(5, 0.5, np.float32), np.eye(5, 2, dtype=np.float32), *none, 1.0)
    within, off = np.full((1, 5), 0.5, np.float32), np.full((1, 5), 0.5, np.float32)
    within[0, :2] += 100
    off[0, 2:4] += (3, 4)
    assert novelty.of(np.concatenate([within, off])) == pytest.approx([0, 5])


def test_what_reaches_beyond_radiographs_counts_too():
    kinds = np.eye(5, 1, dtype=np.float32)
    novelty = Novelty(np.zeros(5, np.float32), np.eye(5, 2, dtype=np.float32), kinds, np.ones(1, np.float32), 1.0)
    features = np.zeros((3, 5), np.float32)
    features[:, 0] = (-9, 1, 5)
    features[2, 3] = 3
    assert novelty.of(features) == pytest.approx([0, 0, 5])


def test_it_survives_its_file(tmp_path):
    arrays = np.ones(4, np.float32), np.eye(4, 2, dtype=np.float32), np.ones((4, 3), np.float32), np.ones(3, np.float32)
    novelty = Novelty(*arrays, 2.5, ("early", "middle"), ("adult", "inverted", "CT slice"))
    novelty.save(tmp_path / "novelty.npz")
    again = Novelty.load(tmp_path / "novelty.npz")
    assert again.threshold == 2.5
    assert (again.layers, again.names) == (novelty.layers, novelty.names)
    for name in ("mean", "basis", "kinds", "reach"):
        np.testing.assert_array_equal(getattr(again, name), getattr(novelty, name))


def test_the_file_of_an_earlier_version_has_no_layers_and_no_names(tmp_path):
    arrays = {
        "mean": np.ones(4),
        "basis": np.eye(4, 2),
        "kinds": np.ones((4, 3)),
        "reach": np.ones(3),
        "threshold": 2.5,
    }
    np.savez(tmp_path / "novelty.npz", **arrays)
    novelty = Novelty.load(tmp_path / "novelty.npz")
    assert (novelty.layers, novelty.names) == ((), ())
    assert novelty.of(np.ones((1, 4), np.float32)) == pytest.approx([0])


def test_kinds_read_the_first_features_and_the_residual_the_last():
    mean, kinds = np.zeros(5, np.float32), np.eye(2, 1, dtype=np.float32)
    novelty = Novelty(mean, np.eye(3, 1, dtype=np.float32), kinds, np.ones(1, np.float32), 1.0, ("early",), ("bright",))
    features = np.array([[5, 9, 0, 0, 0], [0, 9, 7, 3, 0]], np.float32)
    assert novelty.beyond(features).tolist() == [[4], [0]]
    assert novelty.of(features) == pytest.approx([4, 3])

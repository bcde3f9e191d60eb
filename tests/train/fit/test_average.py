import json
import shutil

import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.run import Run
from cxr_edge.runtime import DataError, UsageError
from cxr_edge.train.fit.config import TrainConfig
from cxr_edge.train.fit.training import train

average = Lazy("cxr_edge.train.fit.average")


@pytest.fixture(scope="module")
def crops(run, phantoms, tmp_path_factory):
    """A run like the session's, with another augmentation."""
    folder = tmp_path_factory.mktemp("average") / "crops"
    options = Run.open(run).record["config"] | {"crop_area": 0.7, "epochs": 1}
    train(phantoms, folder, TrainConfig(**options))
    return folder


@pytest.fixture(scope="module")
def averaged(run, crops, phantoms, tmp_path_factory):
    """What the command says, and the folder that it wrote, in which an earlier run was."""
    from click.testing import CliRunner

    from cxr_edge.train.cli import average as command

    folder = tmp_path_factory.mktemp("average") / "mean"
    shutil.copytree(run, folder)
    said = CliRunner().invoke(command, list(map(str, [run, crops, "--data", phantoms, "-o", folder])))
    assert said.exit_code == 0, said.output
    return said, folder


@pytest.fixture
def mean(averaged):
    return Run.open(averaged[1])


def test_it_takes_the_place_of_the_earlier_run_and_says_what_comes_next(averaged, crops, phantoms):
    said, folder = averaged
    header, *rows = [line.split() for line in said.stdout.splitlines()]
    assert header[:3] == ["run", "on", "auc"] and rows[-1][:2] == ["mean", "holdout"]
    assert len(rows) == 6 and rows[-1][2] == f"{Run.open(folder).record['metrics']['holdout']['auc']:.4f}"
    assert f"next: cxr-edge export {folder} -o bundle --calib {phantoms}" in said.stderr
    assert {path.name for path in folder.iterdir()} == {"run.json", "model.keras", "novelty.npz"}
    assert [path.name for path in folder.parent.iterdir()] == ["mean"]  # nothing temporary is left
    assert folder.stat().st_mode == crops.stat().st_mode  # others may read it as they may read any run


def test_the_weights_are_the_mean_of_those_of_the_runs(run, crops, mean):
    weights = [Run.open(folder).network().get_weights() for folder in (run, crops)]
    for found, *parts in zip(mean.network().get_weights(), *weights, strict=True):
        np.testing.assert_array_equal(found, np.mean(parts, axis=0).astype(np.float16))


def test_the_mean_keeps_the_held_out_patients_and_names_its_runs(run, crops, mean):
    first, second = map(Run.open, (run, crops))
    assert (mean.holdout_files, mean.validation_files) == (first.holdout_files, first.validation_files)
    assert mean.fingerprint == first.fingerprint and mean.reference is not None
    assert mean.record["metrics"].keys() == {"validation", "holdout"}
    assert mean.record["config"]["seed"] == 1 and not {"crop_area", "epochs"} & mean.record["config"].keys()
    named = mean.record["averaged"]
    assert [each["config"] for each in named] == [{"crop_area": 1.0, "epochs": 40}, {"crop_area": 0.7, "epochs": 1}]
    assert [each["model_sha256"] for each in named] == [each.record["model_sha256"] for each in (first, second)]
    assert mean.record["seconds"] == first.record["seconds"] + second.record["seconds"]


def test_a_folder_that_is_no_run_is_never_overwritten(run, crops, phantoms, tmp_path, cli):
    (tmp_path / "cat.jpeg").write_bytes(b"cat")
    code, _, err = cli("average", run, crops, "--data", phantoms, "-o", tmp_path)
    assert code == 2 and "is not a run" in err and (tmp_path / "cat.jpeg").exists()


def test_a_place_that_cannot_be_written_is_said_before_the_work(run, crops, phantoms, tmp_path, cli):
    (tmp_path / "file").write_bytes(b"")
    code, _, err = cli("average", run, crops, "--data", phantoms, "-o", tmp_path / "file" / "mean")
    assert code == 2 and "cannot be written" in err and "choosing thresholds" not in err


def changed(run, folder, section, **entries):
    """A copy of a run with other entries in its record."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    record[section].update(entries)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("section", "entries", "error", "says"),
    [
        ("config", {"size": 160}, UsageError, "trained with size 160, .* with 224; only runs with the same size"),
        ("config", {"weights": "imagenet"}, UsageError, "weights imagenet"),
        ("config", {"seed": 2}, UsageError, "seed 2"),  # from scratch, the seed gives the first weights
        ("data", {"fingerprint": "other"}, DataError, "trained on other data than"),
    ],
)
def test_runs_that_did_not_start_alike_are_refused(run, crops, phantoms, tmp_path, section, entries, error, says):
    other = changed(crops, tmp_path / "other", section, **entries)
    with pytest.raises(error, match=says):
        average.average([run, other], phantoms, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_too_few_runs_are_refused(run, phantoms, tmp_path, cli):
    code, _, err = cli("average", run, "--data", phantoms, "-o", tmp_path / "mean")
    assert code == 2 and "1 run to average, expected at least 2" in err
    copy = shutil.copytree(run, tmp_path / "copy")
    code, _, err = cli("average", run, copy, "--data", phantoms, "-o", tmp_path / "mean")
    assert code == 2 and f"{copy}: the same network as {run}" in err
    code, _, err = cli("average", run, phantoms, "--data", phantoms, "-o", tmp_path / "mean")
    assert code == 2 and "not a run" in err


def test_masks_belong_to_runs_that_find_the_lungs(run, crops, phantoms, tmp_path, cli):
    code, _, err = cli("average", run, crops, "--data", phantoms, "-o", tmp_path / "mean", "--masks", phantoms)
    assert code == 2 and "leave --masks out" in err
    both = [changed(each, tmp_path / each.name, "config", lungs=True) for each in (run, crops)]
    code, _, err = cli("average", *both, "--data", phantoms, "-o", tmp_path / "mean")
    assert code == 2 and "--masks" in err


def test_the_data_must_be_those_of_the_training(run, crops, phantoms, tmp_path, cli):
    others = shutil.copytree(phantoms, tmp_path / "others")
    next((others / "train" / "NORMAL").iterdir()).unlink()
    code, _, err = cli("average", run, crops, "--data", others, "-o", tmp_path / "mean")
    assert code == 2 and f"{others}: not the data that {run} was trained on" in err


def test_the_card_of_its_bundle_says_that_it_is_a_mean(mean, tmp_path):
    from cxr_edge.export.conversion.build import build_bundle

    build_bundle(mean.folder, tmp_path / "bundle", None, ("model.onnx",), 0, step=lambda name: None)
    assert "seed 1, mean of 2 runs" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()

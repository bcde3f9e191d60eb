"""Logged for real, and read back."""

import json

import pytest

from cxr_edge.runtime import MissingExtraError
from cxr_edge.train.fit.tracking import Tracking

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged(phantoms, tmp_path_factory):
    """A run that was logged to TensorBoard and to MLflow; -> its folder."""
    from cxr_edge.train.fit.config import TrainConfig
    from cxr_edge.train.fit.training import train

    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/store.db")
        patch.chdir(folder)  # where MLflow keeps the files of a local store
        config = TrainConfig("cnn", "none", size=64, epochs=2, batch_size=8, val_fraction=0.2)
        train(phantoms, folder / "run", config, tracking=Tracking(folder / "board", mlflow=True))
    return folder


def test_mlflow_has_parameters_metrics_pictures_and_files(logged, monkeypatch):
    import mlflow

    monkeypatch.chdir(logged)
    client = mlflow.MlflowClient(f"sqlite:///{logged}/store.db")
    (found,) = client.search_runs([client.get_experiment_by_name("cxr-edge").experiment_id])
    record = json.loads((logged / "run" / "run.json").read_text())
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["arch"] == "cnn" and found.data.params["data"] == record["data"]["fingerprint"]
    losses = client.get_metric_history(found.info.run_id, "val_loss")
    assert [(each.step, each.value) for each in losses] == list(enumerate(record["history"]["val_loss"]))
    assert found.data.metrics["validation_auc"] == record["metrics"]["validation"]["auc"]
    artifacts = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert artifacts == {path.name for path in (logged / "run").iterdir()} >= {"curves.png", "model.keras", "run.json"}


def test_tensorboard_has_every_epoch(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(logged / "board" / "validation")).Reload()
    record = json.loads((logged / "run" / "run.json").read_text())
    values = [float(tensor_util.make_ndarray(each.tensor_proto)) for each in events.Tensors("epoch_loss")]
    assert values == pytest.approx(record["history"]["val_loss"])


def test_a_missing_package_is_said_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr("cxr_edge.train.fit.tracking.find_spec", lambda name: None)
    for asked in ({"mlflow": True}, {"tensorboard": tmp_path}):
        with pytest.raises(MissingExtraError, match=r"cxr-edge\[track\]"):
            Tracking(**asked)

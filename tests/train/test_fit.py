import json
import shutil

import keras
import numpy as np
import pytest

from cxr_edge.runtime import DataError, UsageError
from cxr_edge.runtime.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.train import models
from cxr_edge.train.callbacks import StopOnNaN
from cxr_edge.train.dataset import RadiographBatches
from cxr_edge.train.fit import TrainConfig, train
from cxr_edge.train.patients import patient_of


def test_a_run_tells_what_it_was_made_of(run, phantoms):
    record = json.loads((run / "run.json").read_text())
    images = read_dataset(phantoms, ("train", "val"))
    assert record["data"] == {"images": len(images), "fingerprint": fingerprint(images)}
    assert sum(record["split"][f"{part}_images"] for part in ("train", "validation", "holdout")) == len(images)
    assert not {*record["split"]["validation_files"]} & {*record["split"]["holdout_files"]}
    assert record["metrics"].keys() == {"validation", "holdout"}
    assert record["config"]["seed"] == 0 and {"keras", "tensorflow", "numpy"} <= record["versions"].keys()
    assert [point["name"] for point in record["operating_points"]] == ["balanced", "screening", "confirm"]
    assert record["temperature"] > 0
    assert len(record["history"]["val_loss"]) == 4
    assert {p.name for p in run.iterdir()} == {"run.json", "model.keras", "novelty.npz", "curves.png"}
    held_out = {patient_of(images[0].path.with_name(f.split("/")[1])) for f in record["split"]["validation_files"]}
    assert held_out == set(record["split"]["validation_patients"])


def test_the_saved_network_gives_the_recorded_metrics(run, phantoms):
    record = json.loads((run / "run.json").read_text())
    files = set(record["split"]["validation_files"])
    images = [i for i in read_dataset(phantoms, ("train",)) if i.key in files]
    logit = keras.models.load_model(run / "model.keras").predict(read_pixels(images), verbose=0)[:, 0]
    decided = 1 / (1 + np.exp(-logit / record["temperature"])) >= record["operating_points"][0]["threshold"]
    accuracy = np.mean(decided == [i.label for i in images])
    assert accuracy == pytest.approx(record["metrics"]["validation"]["accuracy"])


def test_batches_cover_each_image_once_in_a_new_order_each_epoch():
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    batches = RadiographBatches(pixels, np.arange(10) % 2, batch_size=4, seed=0)
    orders = []
    for _ in range(2):
        x, y = zip(*(batches[i] for i in range(len(batches))), strict=True)
        seen = np.concatenate(x).ravel()
        assert sorted(seen) == list(range(10))
        np.testing.assert_array_equal(np.concatenate(y).ravel(), seen % 2)
        orders.append(tuple(seen))
        batches.on_epoch_end()
    assert orders[0] != orders[1]


def test_nan_loss_stops_with_advice():
    with pytest.raises(DataError, match="lower --learning-rate"):
        StopOnNaN().on_train_batch_end(3, {"loss": float("nan")})


def test_a_saved_model_that_differs_is_not_kept(tmp_path, monkeypatch):
    network = models.build("cnn", "none")
    other = models.build("cnn", "none")
    monkeypatch.setattr(keras.models, "load_model", lambda path: other)
    with pytest.raises(DataError, match="differ"):
        models.save(network, tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["empty class", "no class", "wrong layout", "broken file"])
def test_unusable_data_is_said_before_training(phantoms, tmp_path, what, cli):
    data = shutil.copytree(phantoms, tmp_path / "data")
    normal = data / "train" / "NORMAL"
    if what == "broken file":
        (normal / "IM-0000-0000.jpeg").write_bytes(b"broken")
    elif what == "wrong layout":
        data = normal
    else:
        shutil.rmtree(normal)
        if what == "empty class":
            normal.mkdir()
    code, _, err = cli("train", data, "-o", tmp_path / "run", "--arch", "cnn", "--weights", "none")
    assert code == 2
    assert {"broken file": "IM-0000-0000.jpeg", "wrong layout": "Kaggle layout"}.get(what, "no image files") in err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_never_overwritten(phantoms, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a run"):
        train(phantoms, tmp_path, TrainConfig("cnn", "none"))
    assert (tmp_path / "precious.txt").exists()


def test_pixels_name_every_broken_file(tmp_path):
    with pytest.raises(DataError, match="2 of 2"):
        read_pixels([LabelledImage(tmp_path / n, 0) for n in ("a.png", "b.png")])

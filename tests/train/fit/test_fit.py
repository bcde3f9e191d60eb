import json
import shutil

import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.dataset import contents, fingerprint, read_dataset, read_pixels
from cxr_edge.runtime import DataError, UsageError
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.fit import models
from cxr_edge.train.fit.config import TrainConfig
from cxr_edge.train.fit.distribute import Replicas
from cxr_edge.train.fit.training import train

keras = Lazy("keras")
augment = Lazy("cxr_edge.train.fit.augment.recipe")
batches = Lazy("cxr_edge.train.data.batches")
callbacks = Lazy("cxr_edge.train.fit.callbacks")
loop = Lazy("cxr_edge.train.fit.loop")


def test_a_run_tells_what_it_was_made_of(run, phantoms):
    record = json.loads((run / "run.json").read_text())
    images = read_dataset(phantoms, ("train", "val"))
    expected = {"images": len(images), "fingerprint": fingerprint(images), "contents": contents(images)}
    assert record["data"] == expected
    assert sum(record["split"][f"{part}_images"] for part in ("train", "validation", "holdout")) == len(images)
    assert not {*record["split"]["validation_files"]} & {*record["split"]["holdout_files"]}
    assert record["metrics"].keys() == {"validation", "holdout"}
    assert record["config"]["seed"] == 1 and {"keras", "tensorflow", "numpy"} <= record["versions"].keys()
    assert [point["name"] for point in record["operating_points"]] == ["balanced", "screening", "confirm", "triage"]
    assert record["temperature"] > 0
    assert len(record["history"]["val_loss"]) == record["config"]["epochs"]
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
    made = batches.RadiographBatches(pixels, np.arange(10) % 2, batch_size=4, seed=0)
    orders = []
    for epoch in range(2):
        made.epoch = epoch
        made.on_epoch_begin()
        x, y = zip(*(made[i] for i in range(len(made))), strict=True)
        seen = np.concatenate(x).ravel()
        assert sorted(seen) == list(range(10))
        np.testing.assert_array_equal(np.concatenate(y).ravel(), seen % 2)
        orders.append(tuple(seen))
    assert orders[0] != orders[1]


def test_batches_give_every_replica_its_share():
    pixels = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    made = batches.RadiographBatches(pixels, np.arange(9) % 2, batch_size=4, seed=0, multiple_of=4)
    assert [len(made[i][0]) for i in range(len(made))] == [4, 4, 4]
    seen = np.concatenate([made[i][0].ravel() for i in range(len(made))])
    assert set(seen) == set(range(9)) and list(seen[9:]) == list(seen[:3])


def test_class_weights_let_both_classes_count_the_same():
    labels = np.array([0, 0, 0, 1])
    _, targets, weights = batches.RadiographBatches(np.zeros((4, 1, 1, 1), np.uint8), labels, 4, 0, class_weights=True)[
        0
    ]
    assert weights[targets[:, 0] == 1].sum() == pytest.approx(weights[targets[:, 0] == 0].sum()) == 2


def test_mixup_mixes_images_labels_and_weights_in_the_same_shares():
    labels = np.array([0, 1, 1, 1, 0, 1])
    pixels = (np.ones((6, 4, 4, 1)) * labels[:, None, None, None]).astype(np.uint8)
    made = batches.RadiographBatches(pixels, labels, 6, 0, class_weights=True, mixup=1.0)
    (images, shares), targets, weights = made[0]
    mixed = np.array(augment.PairMix()(images.astype(np.float32), shares, training=True))
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), targets[:, 0], rtol=1e-6)
    np.testing.assert_allclose(weights, 1.5 + targets[:, 0] * (0.75 - 1.5), rtol=1e-6)
    assert 0 < shares.min() < shares.max() < 1
    np.testing.assert_array_equal(augment.PairMix()(images.astype(np.float32), shares), images)


def test_half_precision_scales_the_loss_and_keeps_single_precision_weights():
    """As on a GPU; on a CPU, in bfloat16, tests/test_chain.py trains so."""
    config = TrainConfig("cnn", "none", size=64, mixed_precision=True)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = config.build()
    finally:
        keras.config.set_dtype_policy("float32")
    trainer = loop.fitted_model(network, augment.augmentation(0), config, Replicas())
    loop.compile_model(trainer, loop.phases(config)[0], 2, config, network.dtype_policy.name)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert network.get_layer("conv1").compute_dtype == "float16" and network.get_layer("logit").dtype == "float32"
    assert {str(weight.dtype) for weight in network.weights} == {"float32"}


def test_nan_loss_stops_with_advice():
    with pytest.raises(DataError, match="lower --learning-rate"):
        callbacks.StopOnNaN().on_train_batch_end(3, {"loss": float("nan")})


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


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--val-fraction", 0.5, "--holdout-fraction", 0.49], "no patients of a class are left"),
        (["--size", 100], "multiple of 32"),
        (["--alpha", 0.5], "cnn has none"),
        (["--mixup", 0.2, "--batch-size", 7], "multiple of 2"),
        (["--weights", "imagenet"], "use --weights none"),
    ],
)
def test_options_that_cannot_be_meant_are_said_before_training(phantoms, tmp_path, options, advice, cli):
    code, _, err = cli("train", phantoms, "-o", tmp_path / "run", "--arch", "cnn", "--weights", "none", *options)
    assert code == 2 and advice in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loss_that_became_nan_leaves_nothing(phantoms, tmp_path):
    with pytest.raises(DataError, match="lower --learning-rate"):
        train(phantoms, tmp_path / "run", TrainConfig("cnn", "none", size=64, epochs=1, learning_rate=1e30))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_never_overwritten(phantoms, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a run"):
        train(phantoms, tmp_path, TrainConfig("cnn", "none"))
    assert (tmp_path / "precious.txt").exists()

"""`--strangers`: what is read, and what is refused before training starts."""

import cv2
import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset
from cxr_edge.runtime import DataError
from cxr_edge.train.data.strangers import FEWEST, Strangers


def write(folder, count, seed=0):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 256, (48, 40), dtype=np.uint8))


@pytest.fixture
def data(tmp_path):
    for label in ("NORMAL", "PNEUMONIA"):
        write(tmp_path / "data" / "train" / label, 2, seed=len(label))
    return read_dataset(tmp_path / "data")


def test_each_folder_is_a_kind(tmp_path, data):
    write(tmp_path / "strangers" / "hand", FEWEST, seed=1)
    write(tmp_path / "strangers" / "adult", FEWEST + 1, seed=2)
    strangers = Strangers.read(tmp_path / "strangers", 64, data)
    assert list(strangers.pixels) == ["adult", "hand"]
    assert strangers.pixels["hand"].shape == (FEWEST, 64, 64, 1)
    assert strangers.facts() == {"kinds": {"adult": 21, "hand": 20}, "fingerprint": strangers.fingerprint}


def test_another_image_changes_the_fingerprint(tmp_path, data):
    write(tmp_path / "strangers" / "hand", FEWEST, seed=1)
    before = Strangers.read(tmp_path / "strangers", 64, data).fingerprint
    cv2.imwrite(str(tmp_path / "strangers" / "hand" / "0.png"), np.zeros((48, 40), np.uint8))
    assert Strangers.read(tmp_path / "strangers", 64, data).fingerprint != before


def refused(folder, data, words):
    with pytest.raises(DataError, match=words):
        Strangers.read(folder, 64, data)


def test_a_missing_or_empty_folder_is_refused(tmp_path, data):
    refused(tmp_path / "none", data, "none: not a folder; expected a folder for each kind")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", data, "empty: found no folder in it; expected a folder for each kind")


def test_images_without_a_folder_of_their_kind_are_refused(tmp_path, data):
    write(tmp_path / "strangers", FEWEST)
    refused(tmp_path / "strangers", data, "strangers: found no folder in it")


@pytest.mark.parametrize("count", [0, FEWEST - 1])
def test_a_kind_with_few_images_is_refused(tmp_path, data, count):
    write(tmp_path / "strangers" / "hand", count)
    refused(tmp_path / "strangers", data, rf"hand: found {count} images, expected at least {FEWEST}")


@pytest.mark.parametrize("name", ["inverted", "CT slice", "unknown"])
def test_the_name_of_a_made_kind_is_refused(tmp_path, data, name):
    write(tmp_path / "strangers" / name, FEWEST)
    refused(tmp_path / "strangers", data, f"the kind '{name}' is made by cxr-edge")


def test_images_of_the_data_set_are_refused(tmp_path, data):
    write(tmp_path / "strangers" / "hand", FEWEST, seed=1)
    (tmp_path / "strangers" / "hand" / "copy.png").write_bytes(data[1].path.read_bytes())
    refused(tmp_path / "strangers", data, r"copy\.png: the same file as .*NORMAL.1\.png of the data set \(1 such")


def test_an_unreadable_image_is_refused(tmp_path, data):
    write(tmp_path / "strangers" / "hand", FEWEST, seed=1)
    (tmp_path / "strangers" / "hand" / "0.png").write_bytes(b"no image")
    refused(tmp_path / "strangers", data, r"1 of 20 images cannot be read")


def test_bad_strangers_stop_the_command_before_training(tmp_path, data, cli):
    (tmp_path / "strangers").mkdir()
    code, out, error = cli(
        "train", tmp_path / "data", "-o", tmp_path / "run", "--arch", "cnn", "--weights", "none",
        "--strangers", tmp_path / "strangers",
    )  # fmt: skip
    assert code == 2 and not out and "found no folder in it" in error
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()

import shutil

import cv2
import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset
from cxr_edge.runtime.errors import DataError
from cxr_edge.train.data.masks import find_masks, read_masks
from cxr_edge.train.data.phantom import write_dataset


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    """Phantoms and their lung masks."""
    folder = tmp_path_factory.mktemp("lungs")
    list(write_dataset(folder / "data", patients=5, seed=0, masks=folder / "masks"))
    return folder


@pytest.fixture
def copy(lungs, tmp_path):
    return shutil.copytree(lungs, tmp_path / "copy")


def read(folder, size=64):
    images = read_dataset(folder / "data", ("train",))
    return images, read_masks(find_masks(folder / "masks", images), images, size)


def test_masks_belong_to_radiographs_of_the_same_class_and_name(copy):
    (copy / "masks" / "NORMAL" / "IM-0000-0000.png").unlink()
    images, masks = read(copy)
    assert [image.path.stem for image, known in zip(images, masks.known, strict=True) if not known] == ["IM-0000-0000"]
    assert masks.pixels.shape == (len(images), 64, 64, 1) and set(np.unique(masks.pixels)) == {0, 255}
    row = next(row for row, image in enumerate(images) if image.path.stem == "IM-0001-0000")
    mask = cv2.imread(str(copy / "masks" / "NORMAL" / "IM-0001-0000.png"), 0)
    assert abs((masks.pixels[row, :, :, 0] > 0).mean() - (mask > 127).mean()) < 0.01


def test_a_mask_of_the_networks_input_size_fits_any_radiograph(copy):
    for path in (copy / "masks").glob("*/*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), 0), (64, 64), interpolation=cv2.INTER_NEAREST))
    assert read(copy)[1].known.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda masks: shutil.copy(masks / "NORMAL/IM-0000-0000.png", masks / "NORMAL/other.png"),
            "found no radiograph",
        ),
        (lambda masks: shutil.rmtree(masks / "PNEUMONIA"), "masks of one class only"),
        (shutil.rmtree, "found no lung masks"),
        (
            lambda masks: cv2.imwrite(str(masks / "NORMAL/IM-0000-0000.png"), np.zeros((50, 60), np.uint8)),
            "60×50 pixels",
        ),
        (lambda masks: cv2.imwrite(str(masks / "NORMAL/IM-0000-0000.png"), np.zeros((64, 64), np.uint8)), "on 0% of"),
        (lambda masks: (masks / "NORMAL/IM-0000-0000.png").write_bytes(b"no image"), "repair or remove this mask"),
    ],
    ids=["no radiograph", "one class", "no masks", "other size", "no lungs", "broken"],
)
def test_unusable_masks_are_refused(copy, change, message):
    change(copy / "masks")
    with pytest.raises(DataError, match=message):
        read(copy)

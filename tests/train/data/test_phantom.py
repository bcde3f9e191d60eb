import numpy as np
import pytest

from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.train.data.phantom import draw, write_dataset


def test_the_same_seed_draws_the_same():
    np.testing.assert_array_equal(draw(5, "focal").image, draw(5, "focal").image)
    assert draw(5, None).image.shape != draw(6, None).image.shape or (draw(5, None).image != draw(6, None).image).any()


@pytest.mark.parametrize("finding", ["focal", "diffuse"])
def test_a_finding_brightens_the_lungs_where_it_says(finding):
    sick, healthy = draw(7, finding), draw(7, None)
    assert healthy.opacity.max() == 0
    brighter = sick.image.astype(int) - healthy.image
    where = sick.opacity > 0.15
    assert brighter[where].mean() > 20 > 1 > abs(brighter[sick.opacity < 0.001].mean())


def test_the_data_set_has_the_kaggle_layout(tmp_path):
    assert list(write_dataset(tmp_path, patients=10, seed=1))[-1] == 28
    names = {p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)}
    assert "train/PNEUMONIA/person0_bacteria_1.jpeg" in names and "test/NORMAL/IM-0009-0001.jpeg" in names
    assert read_image(tmp_path / "test/NORMAL/IM-0009-0001.jpeg").std() > 20

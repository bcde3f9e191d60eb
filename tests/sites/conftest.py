"""A site bundle made from the chain of drawn radiographs: the network and the radiographs of other drawn patients."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Radiographs of drawn patients that the network was not trained on, without class folders, and site.csv."""
    from cxr_edge.common.dataset import read_dataset
    from cxr_edge.train.data.phantom import write_dataset

    source, folder = tmp_path_factory.mktemp("drawn"), tmp_path_factory.mktemp("site")
    list(write_dataset(source, patients=60, seed=7))
    (folder / "images").mkdir()
    lines = ["path,label"]
    for number, image in enumerate(read_dataset(source)):
        name = f"{number:03}.jpeg"
        image.path.rename(folder / "images" / name)
        lines.append(f"{name},{('NORMAL', 'PNEUMONIA')[image.label]}")
    (folder / "site.csv").write_text("\n".join(lines) + "\n")
    return folder

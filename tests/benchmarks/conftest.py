"""What tests of the benchmarks share."""

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder with two images of noise."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), random.integers(0, 256, (300, 320), np.uint8))
    return folder

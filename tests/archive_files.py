"""Drawn radiographs for the tests of archives."""

from pathlib import Path

import cv2
import numpy as np


def draw(path: Path, seed: int) -> Path:
    """A radiograph-like picture that differs for each seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (12, 12), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(small, (160, 140), interpolation=cv2.INTER_CUBIC))
    return path

"""Phantoms: drawn chest radiographs, a data set without restrictions for the demo and the tests.

They resemble radiographs enough for a network, not for a physician. Results on them say nothing about real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES

Field = npt.NDArray[np.float32]
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Phantom:
    """A drawn radiograph.

    Attributes
    ----------
    image
        (H, W) uint8.
    opacity
        (H, W) float32 ≥ 0; 0 everywhere in a normal one.
    lungs
        (H, W) float32 in [0, 1]: 1 inside the lungs, also behind the heart.
    """

    image: npt.NDArray[np.uint8]
    opacity: Field
    lungs: Field


def draw(seed: int, finding: str | None, exposure: int = 0) -> Phantom:
    """Draw one phantom.

    Parameters
    ----------
    seed
        Seed of the patient: anatomy, and place of the opacity.
    finding
        None, `focal` (a consolidation, as from bacteria) or `diffuse` (an infiltrate, as from viruses).
    exposure
        Number of the image of this patient; it changes position, noise, collimation and contrast.
    """
    patient = np.random.default_rng([seed, 0])
    room = np.random.default_rng([seed, 1, exposure])
    height, width = (int(n) for n in room.integers((280, 330), (361, 421)))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    # Body coordinates: x from -1 (the patient's right, which is left in the image) to 1, y from -1 (neck) to 1.
    scale = room.uniform(0.92, 1.05)
    x = (2 * x / width - 1 - room.uniform(-0.04, 0.04)) / scale
    y = (2 * y / height - 1 - room.uniform(-0.04, 0.04)) / scale

    lung_width, lung_height = patient.uniform(0.3, 0.36), patient.uniform(0.62, 0.72)
    right, left = (_ellipse(x, y, side * 0.42, -0.05, lung_width, lung_height, 0.10) for side in (-1, 1))
    diaphragm = _step(y - 0.52 + 0.22 * np.cos(2.4 * (np.abs(x) - 0.4)), 0.05)
    lungs = np.maximum(right, left) * (1 - diaphragm)
    heart = _ellipse(x, y, 0.14, 0.22, patient.uniform(0.26, 0.36), patient.uniform(0.28, 0.36), 0.12)
    mediastinum = _step(0.13 - np.abs(x), 0.05)

    brightness = 0.62 * _ellipse(x, y, 0, 0.1, 1.05, 1.3, 0.15)
    brightness -= 0.42 * lungs
    brightness += 0.30 * np.maximum(heart, 0.8 * mediastinum) + 0.12 * diaphragm
    brightness += 0.11 * _ribs(x, y, patient) * np.maximum(lungs, 0.3)
    opacity = _opacity(x, y, lungs, finding, patient)
    brightness += opacity
    return Phantom(_expose(brightness, room), opacity, lungs)


def write_dataset(folder: Path, patients: int, seed: int, masks: Path | None = None) -> Iterator[int]:
    """Write a data set in the Kaggle layout with the names of the real one; yield the number of images so far.

    Parameters
    ----------
    patients
        Number for each class. Every third patient has two images; every fifth goes to `test`, the others to `train`.
    masks
        Folder for the lung masks of the images in `train`, {NORMAL,PNEUMONIA}/NAME.png; None writes none.
    """
    written = 0
    for number in range(patients):
        split = "test" if number % 5 == 4 else "train"
        for label, name in enumerate(CLASSES):
            finding = (None, ("focal", "diffuse")[number % 2])[label]
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for exposure in range(2 if number % 3 == 0 else 1):
                phantom = draw(2 * (seed * 100_003 + number) + label, finding, exposure)
                cause = {"focal": "bacteria", "diffuse": "virus"}.get(finding or "")
                stem = f"person{number}_{cause}_{exposure}" if cause else f"IM-{number:04d}-{exposure:04d}"
                cv2.imwrite(str(target / f"{stem}.jpeg"), phantom.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                if masks is not None and split == "train":
                    (masks / name).mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(masks / name / f"{stem}.png"), np.where(phantom.lungs > 0.5, 255, 0))
                written += 1
        yield written


def _step(value: Field, softness: float) -> Field:
    """Smooth step: 0 below zero, 1 above."""
    return np.asarray((1 + np.tanh(2 * value / softness)) / 2, np.float32)


def _ellipse(x: Field, y: Field, cx: float, cy: float, rx: float, ry: float, softness: float) -> Field:
    return _step(1 - np.hypot((x - cx) / rx, (y - cy) / ry).astype(np.float32), softness)


def _ribs(x: Field, y: Field, random: np.random.Generator) -> Field:
    """Bright arcs that descend towards the sides."""
    phase = (y - 0.55 * x**2) * random.uniform(15, 18) + random.uniform(0, 2 * np.pi)
    return np.asarray(np.clip(np.sin(phase) - 0.45, 0, 1) / 0.55, np.float32)


def _opacity(x: Field, y: Field, lungs: Field, finding: str | None, random: np.random.Generator) -> Field:
    """The brightness that pneumonia adds within the lungs."""
    if finding is None:
        return np.zeros_like(x)
    side = random.choice((-1.0, 1.0))
    if finding == "focal":
        cx, cy, radius = side * random.uniform(0.34, 0.52), random.uniform(-0.4, 0.3), random.uniform(0.14, 0.24)
        shape = np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / radius**2))
        return np.asarray(random.uniform(0.30, 0.45) * shape * lungs, np.float32)
    coarse = random.uniform(0, 1, (9, 9)).astype(np.float32)
    patches = cv2.resize(coarse, x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(random.uniform(0.28, 0.40) * np.clip(1.4 * patches - 0.2, 0, 1) * lungs, np.float32)


def _expose(brightness: Field, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Apply blur, contrast, noise and collimation of one exposure."""
    blurred = cv2.GaussianBlur(brightness, (0, 0), random.uniform(0.8, 1.4))
    exposed = np.clip(blurred, 0, 1) ** random.uniform(0.8, 1.25) * random.uniform(0.85, 1.1)
    exposed += random.normal(0, 0.015, exposed.shape)
    image = np.clip(255 * exposed, 0, 255).astype(np.uint8)
    top, bottom, left, right = random.integers(0, 14, 4)
    framed = np.full_like(image, random.integers(0, 12))
    inner = np.s_[top : image.shape[0] - bottom, left : image.shape[1] - right]
    framed[inner] = image[inner]
    return framed

"""Perturbations that imitate another X-ray room, scanner or archive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from cxr_edge.common.dataset import Pixels
from cxr_edge.runtime.imaging.gray import Gray


def perturb(pixels: Pixels, change: Callable[[Gray], Gray]) -> Pixels:
    """Apply a change to each image: (N, H, W, 1) uint8 -> the same shape, uint8."""
    return np.stack([change(image[:, :, 0]) for image in pixels])[:, :, :, np.newaxis]


def _gamma(image: Gray, gamma: float) -> Gray:
    curve = 255 * (np.arange(256) / 255) ** gamma
    return cv2.LUT(image, np.rint(curve).astype(np.uint8))


def _contrast(image: Gray, factor: float) -> Gray:
    mean = float(image.mean())
    return np.clip(np.rint((image - mean) * factor + mean), 0, 255).astype(np.uint8)


def _clahe(image: Gray) -> Gray:
    return cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(image)


def _blur(image: Gray) -> Gray:
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def _noise(image: Gray) -> Gray:
    # The image is the seed, so that its noise does not depend on its place in the batch.
    random = np.random.default_rng(int(image.sum()))
    return np.clip(np.rint(image + random.normal(0, 10, image.shape)), 0, 255).astype(np.uint8)


def _jpeg(image: Gray) -> Gray:
    _, data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def _resample(image: Gray, interpolation: int) -> Gray:
    """Halve the size and restore it, with another kernel than that of preprocessing."""
    height, width = image.shape
    half = cv2.resize(image, (width // 2, height // 2), interpolation=interpolation)
    return cv2.resize(half, (width, height), interpolation=interpolation)


def _inner(image: Gray) -> tuple[slice, slice]:
    """The image without 8 % at each side."""
    height, width = image.shape
    y, x = round(0.08 * height), round(0.08 * width)
    return slice(y, height - y), slice(x, width - x)


def _crop(image: Gray) -> Gray:
    height, width = image.shape
    return cv2.resize(image[_inner(image)], (width, height), interpolation=cv2.INTER_LINEAR)


def _frame(image: Gray) -> Gray:
    """Cover a strip at each side with black, as collimation and letterboxing do."""
    framed = np.zeros_like(image)
    framed[_inner(image)] = image[_inner(image)]
    return framed


def _mark(image: Gray) -> Gray:
    """Put a side marker into the upper left corner."""
    height, width = image.shape
    place, size = (round(0.04 * width), round(0.18 * height)), height / 280
    return np.asarray(cv2.putText(image.copy(), "R", place, cv2.FONT_HERSHEY_SIMPLEX, size, 250, 2), np.uint8)


def _move(image: Gray, degrees: float = 0.0, scale: float = 1.0) -> Gray:
    """Rotate and scale about the centre; the surroundings become black."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


#: Name -> function from (H, W) uint8 to the same shape, uint8.
PERTURBATIONS: dict[str, Callable[[Gray], Gray]] = {
    "gamma 0.7": partial(_gamma, gamma=0.7),
    "gamma 1.4": partial(_gamma, gamma=1.4),
    "contrast 0.7": partial(_contrast, factor=0.7),
    "contrast 1.3": partial(_contrast, factor=1.3),
    "histogram equalised": cv2.equalizeHist,
    "CLAHE": _clahe,
    "blur, sigma 1.5 pixels": _blur,
    "noise, sigma 10 levels": _noise,
    "JPEG quality 30": _jpeg,
    "half size and back, nearest": partial(_resample, interpolation=cv2.INTER_NEAREST),
    "half size and back, bilinear": partial(_resample, interpolation=cv2.INTER_LINEAR),
    "border of 8 % cropped": _crop,
    "border of 8 % black": _frame,
    "side marker added": _mark,
    "rotated by 8°": partial(_move, degrees=8.0),
    "rotated by −8°": partial(_move, degrees=-8.0),
    "scaled by 0.9": partial(_move, scale=0.9),
    "scaled by 1.1": partial(_move, scale=1.1),
}

"""Proxies for another hospital: what becomes of a network's figures where images look, or patients are, a little other.

A held-out part of one data set comes from the same rooms and says little about others. Nothing here replaces data of
another hospital; a network that fails here will fail there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.dataset import LabelledImage
from cxr_edge.runtime.image import Gray, read_image
from cxr_edge.train.calibrate import to_probability
from cxr_edge.train.metrics import Floats, Labels
from cxr_edge.train.patients import are_numbered, patient_of, positions

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

#: Blocks of consecutive patient numbers, of about as many images each.
BLOCKS = 4


@dataclass(frozen=True)
class Proxy:
    """A network's figures under one change.

    Attributes
    ----------
    name, kind
        What was changed; `none`, `perturbation` of all images, or `stratum` of the images as they are.
    images
        Number of images.
    auc, sensitivity, specificity
        None where a class is absent; the latter two at the given threshold.
    """

    name: str
    kind: str
    images: int
    auc: float | None
    sensitivity: float | None
    specificity: float | None

    @property
    def youden(self) -> float | None:
        """Sensitivity + specificity − 1 (Youden 1950): 1 where all decisions are right, 0 where they say nothing."""
        return None if self.auc is None else (self.sensitivity or 0) + (self.specificity or 0) - 1


@dataclass(frozen=True)
class Shift:
    """All proxies; the first is the images as they are."""

    proxies: tuple[Proxy, ...]

    @property
    def worst(self) -> Proxy:
        """Of least AUC: where the network tells sick from healthy least."""
        return min((p for p in self.proxies if p.auc is not None), key=lambda p: p.auc or 0)

    @property
    def worst_decisions(self) -> Proxy:
        """Of least sensitivity + specificity: where its threshold fits least."""
        return min((p for p in self.proxies if p.youden is not None), key=lambda p: p.youden or 0)


def measure_shift(
    logits_of: Callable[[Pixels], Floats],
    images: Sequence[LabelledImage],
    pixels: Pixels,
    threshold: float,
    temperature: float,
    step: Callable[[str], None] = lambda name: None,
) -> Shift:
    """Measure a network under every perturbation and on every stratum.

    Parameters
    ----------
    logits_of
        (N, H, W, 1) uint8 -> (N,) float logits.
    images, pixels
        The images, both classes among them, and what the network sees of them: (N, H, W, 1) uint8 in [0, 255].
    threshold, temperature
        Pneumonia is decided where sigmoid(logit / temperature) ≥ threshold.
    step
        Told the name of each perturbation before it is made.
    """
    labels = np.array([image.label for image in images], np.int64)

    def proxy(name: str, kind: str, logit: Floats, mask: Mask) -> Proxy:
        return _proxy(name, kind, labels[mask], logit[mask], threshold, temperature)

    everyone = np.ones(len(labels), bool)
    step("as they are")
    unchanged = logits_of(pixels)
    proxies = [proxy("as they are", "none", unchanged, everyone)]
    for name, change in PERTURBATIONS.items():
        step(name)
        proxies.append(proxy(name, "perturbation", logits_of(perturb(pixels, change)), everyone))
    proxies += [proxy(name, "stratum", unchanged, mask) for name, mask in strata(images, pixels)]
    return Shift(tuple(proxies))


def perturb(pixels: Pixels, change: Callable[[Gray], Gray]) -> Pixels:
    """Change each image alike: (N, H, W, 1) uint8 -> the same shape, uint8."""
    return np.stack([change(image[:, :, 0]) for image in pixels])[:, :, :, np.newaxis]


def strata(images: Sequence[LabelledImage], pixels: Pixels) -> Iterator[tuple[str, Mask]]:
    """Part the images by what should not matter to the decision.

    Sub-types and blocks of patients need file names of *Chest X-Ray Images (Pneumonia)*, or they are left out.

    Yields
    ------
    Name and (N,) bool mask.
    """
    labels = np.array([image.label for image in images])
    patients = [patient_of(image.path) for image in images]
    for cause in ("bacteria", "virus"):
        of_cause = np.array([patient.startswith(f"{cause}-") for patient in patients])
        if of_cause.any():
            yield f"{cause} against normal", of_cause | (labels == 0)
    if are_numbered(patients):
        blocks = (positions(images) * BLOCKS).astype(int)
        for block in range(BLOCKS):
            yield f"patient numbers, block {block + 1} of {BLOCKS}", blocks == block
    yield from _outer_thirds("darkest third", "brightest third", pixels.mean(axis=(1, 2, 3)))
    # The file's size tells of the scanner and its compression, and of the class: pneumonia has the smaller files here.
    yield from _outer_thirds("smallest third of files", "largest third of files", _file_sizes(images))
    # The network sees every original squeezed into a square: its shape is lost, and the distortion left.
    yield from _outer_thirds("narrowest third", "widest third", _aspect_ratios(images))


def _proxy(name: str, kind: str, labels: Labels, logit: Floats, threshold: float, temperature: float) -> Proxy:
    from sklearn.metrics import roc_auc_score

    decided = to_probability(logit, temperature) >= threshold
    sick, healthy = labels == 1, labels == 0
    return Proxy(
        name=name,
        kind=kind,
        images=len(labels),
        auc=float(roc_auc_score(labels, logit)) if sick.any() and healthy.any() else None,
        sensitivity=float(decided[sick].mean()) if sick.any() else None,
        specificity=float((~decided[healthy]).mean()) if healthy.any() else None,
    )


def _outer_thirds(lowest: str, highest: str, values: Floats) -> Iterator[tuple[str, Mask]]:
    """The images of the lowest and the highest third of a value, unless all share it."""
    low, high = np.quantile(values, (1 / 3, 2 / 3))
    if low < high:
        yield lowest, values <= low
        yield highest, values >= high


def _file_sizes(images: Sequence[LabelledImage]) -> Floats:
    return np.array([Path(image.path).stat().st_size for image in images], np.float64)


def _aspect_ratios(images: Sequence[LabelledImage]) -> Floats:
    """Width by height of each image as stored: (N,) float64."""
    from PIL import Image, UnidentifiedImageError

    ratios = []
    for image in images:
        try:
            with Image.open(image.path, formats=("JPEG", "PNG")) as header:  # quicker than to decode
                width, height = header.size
        except UnidentifiedImageError:
            height, width = read_image(image.path).shape
        ratios.append(width / height)
    return np.array(ratios)


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
    # Seeded by the image: the same one gets the same noise wherever it stands.
    random = np.random.default_rng(int(image.sum()))
    return np.clip(np.rint(image + random.normal(0, 10, image.shape)), 0, 255).astype(np.uint8)


def _jpeg(image: Gray) -> Gray:
    _, data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def _resample(image: Gray, interpolation: int) -> Gray:
    """Down to half the size and up again, by another kernel than preprocessing's."""
    height, width = image.shape
    half = cv2.resize(image, (width // 2, height // 2), interpolation=interpolation)
    return cv2.resize(half, (width, height), interpolation=interpolation)


def _inner(image: Gray) -> tuple[slice, slice]:
    """All but 8 % at each side."""
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
    """Rotate and scale about the centre, black around."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


#: What another room, scanner or archive does to a radiograph: (H, W) uint8 -> the same.
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

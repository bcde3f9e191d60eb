"""Proxies for another hospital: what becomes of a network's figures where images look, or patients are, a little other.

A held-out part of one data set comes from the same rooms and says little about others. Nothing here replaces data of
another hospital; a network that fails here will fail there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage
from cxr_edge.common.statistics import Floats, Labels, roc_auc
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.train.data.patients import are_numbered, patient_of, positions
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.fit.calibrate import to_probability

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
    decided = to_probability(logit, temperature) >= threshold
    sick, healthy = labels == 1, labels == 0
    return Proxy(
        name=name,
        kind=kind,
        images=len(labels),
        auc=roc_auc(labels, logit) if sick.any() and healthy.any() else None,
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

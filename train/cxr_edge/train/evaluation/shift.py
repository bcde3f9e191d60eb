"""Proxies for another hospital: the figures of a network on perturbed images and on subgroups of patients.

A held-out part of a data set comes from the same rooms and says little about others. The proxies do not replace data of
another hospital, but a network that fails here will also fail there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage, Pixels
from cxr_edge.common.metrics import Cases, Estimate, calibration
from cxr_edge.common.statistics import Floats, roc_auc, to_probability
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.signatures import sniff
from cxr_edge.train.data.appearance import appearance_clusters
from cxr_edge.train.data.patients import are_numbered, patient_of, positions
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.evaluation.crossfit import LeftOut, leave_clusters_out

Mask = npt.NDArray[np.bool_]

#: Number of blocks of consecutive patient numbers, each with about the same number of images.
BLOCKS = 4


@dataclass(frozen=True)
class Proxy:
    """The figures of a network under one change.

    Attributes
    ----------
    name, kind
        Name of the change, and `none`, `perturbation` (of all images) or `stratum` (some of the original images).
    images
        Number of images.
    auc, sensitivity, specificity
        None where a class is absent. Sensitivity and specificity are at the given threshold.
    ece
        Calibration error at the given temperature.
    """

    name: str
    kind: str
    images: int
    auc: float | None
    sensitivity: float | None
    specificity: float | None
    ece: Estimate

    @property
    def youden(self) -> float | None:
        """Sensitivity + specificity − 1 (Youden 1950): 1 if all decisions are right, 0 at chance level."""
        return None if self.auc is None else (self.sensitivity or 0) + (self.specificity or 0) - 1


@dataclass(frozen=True)
class Shift:
    """All proxies.

    Attributes
    ----------
    proxies
        The first is that of the original images.
    clusters
        The figures of each appearance cluster, left out of calibration; none if all images look alike.
    """

    proxies: tuple[Proxy, ...]
    clusters: tuple[LeftOut, ...]

    @property
    def worst(self) -> Proxy:
        """The proxy with the least AUC."""
        return min((p for p in self.proxies if p.auc is not None), key=lambda p: p.auc or 0)

    @property
    def worst_decisions(self) -> Proxy:
        """The proxy with the least sensitivity + specificity, for which the threshold fits least."""
        return min((p for p in self.proxies if p.youden is not None), key=lambda p: p.youden or 0)

    @property
    def worst_calibration(self) -> Proxy:
        """The perturbation with the largest calibration error, or the original images if that of all is less."""
        return max((p for p in self.proxies if p.kind != "stratum"), key=lambda p: p.ece.value or 0)


def measure_shift(
    logits_of: Callable[[Pixels], Floats],
    images: Sequence[LabelledImage],
    pixels: Pixels,
    threshold: float,
    temperature: float,
    step: Callable[[str], None] = lambda name: None,
) -> Shift:
    """Measure a network under each perturbation, on each stratum, and on each appearance cluster.

    Parameters
    ----------
    logits_of
        (N, H, W, 1) uint8 -> (N,) float logits.
    images, pixels
        The images, with both classes, and the network's input for them: (N, H, W, 1) uint8 in [0, 255].
    threshold, temperature
        The decision is pneumonia if sigmoid(logit / temperature) ≥ threshold.
    step
        Called with the name of each perturbation before it is measured.
    """
    labels = np.array([image.label for image in images], np.int64)
    patients = np.array([patient_of(image.path) for image in images])

    def proxy(name: str, kind: str, logit: Floats) -> Proxy:
        return _proxy(name, kind, Cases(labels, logit, to_probability(logit, temperature), patients), threshold)

    step("as they are")
    unchanged = logits_of(pixels)
    proxies, versions = [proxy("as they are", "none", unchanged)], [unchanged]
    for name, change in PERTURBATIONS.items():
        step(name)
        versions.append(logits_of(perturb(pixels, change)))
        proxies.append(proxy(name, "perturbation", versions[-1]))
    cases = Cases(labels, unchanged, to_probability(unchanged, temperature), patients)
    proxies += [_proxy(name, "stratum", cases.only(mask), threshold) for name, mask in strata(images, pixels)]
    step("appearance clusters")
    clusters = leave_clusters_out(labels, versions, patients, appearance_clusters(pixels, labels))
    return Shift(tuple(proxies), clusters)


def strata(images: Sequence[LabelledImage], pixels: Pixels) -> Iterator[tuple[str, Mask]]:
    """Divide the images by properties that should not affect the decision.

    Subtypes and blocks of patients require file names of *Chest X-Ray Images (Pneumonia)*; otherwise they are omitted.

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
    # The file size depends on the scanner and its compression, and on the class: pneumonia has smaller files here.
    yield from _outer_thirds("smallest third of files", "largest third of files", _file_sizes(images))
    # Each image is resized to a square: its shape is lost, but the distortion remains visible.
    yield from _outer_thirds("narrowest third", "widest third", _aspect_ratios(images))


def _proxy(name: str, kind: str, cases: Cases, threshold: float) -> Proxy:
    decided = cases.probability >= threshold
    sick, healthy = cases.labels == 1, cases.labels == 0
    return Proxy(
        name=name,
        kind=kind,
        images=len(decided),
        auc=roc_auc(cases.labels, cases.logit) if sick.any() and healthy.any() else None,
        sensitivity=float(decided[sick].mean()) if sick.any() else None,
        specificity=float((~decided[healthy]).mean()) if healthy.any() else None,
        ece=calibration(cases),
    )


def _outer_thirds(lowest: str, highest: str, values: Floats) -> Iterator[tuple[str, Mask]]:
    """The images in the lowest and in the highest third of a value, unless all have the same."""
    low, high = np.quantile(values, (1 / 3, 2 / 3))
    if low < high:
        yield lowest, values <= low
        yield highest, values >= high


def _file_sizes(images: Sequence[LabelledImage]) -> Floats:
    return np.array([Path(image.path).stat().st_size for image in images], np.float64)


def _aspect_ratios(images: Sequence[LabelledImage]) -> Floats:
    """Width by height of each image as stored: (N,) float64."""
    from simplejpeg import decode_jpeg_header

    ratios = []
    for data in (image.path.read_bytes() for image in images):
        # The header of a JPEG is much faster to read than its pixels.
        height, width = decode_jpeg_header(data)[:2] if sniff(data) == "JPEG" else read_image(data).shape
        ratios.append(width / height)
    return np.array(ratios)

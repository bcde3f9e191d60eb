"""The place of the evidence: how much of each heatmap lies in the lungs, measured with true masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES, Pixels
from cxr_edge.common.metrics import Cases, Estimate, mean_over_images
from cxr_edge.common.statistics import Floats, dice
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.explanation.gradcam import upsample
from cxr_edge.runtime.explanation.lungs import LUNG, convex_hull, evidence_inside
from cxr_edge.train.data.masks import LungMasks
from cxr_edge.train.evaluation.joined import Joined, measure_joined
from cxr_edge.train.evaluation.subject import Subject


@dataclass(frozen=True)
class Place:
    """Place of the evidence in images of one class that were decided in one way.

    Attributes
    ----------
    truth, decided
        Class and decision of the images.
    images, empty
        Number of images with a mask, and number of those without evidence, which are left out of the rest.
    in_lungs, in_hull
        Mean share of the evidence inside the lungs, and inside the convex hull of both.
    peak_in_hull
        Share of the images whose hottest pixel lies inside the hull.
    """

    truth: str
    decided: str
    images: int
    empty: int
    in_lungs: Estimate
    in_hull: Estimate
    peak_in_hull: Estimate


@dataclass(frozen=True)
class Evidence:
    """Place of the evidence, and agreement of the lungs that the model finds with the true masks.

    Attributes
    ----------
    images
        Number of images with a mask.
    lung_area, hull_area
        Mean share of the image that lungs and hull cover: what evidence at random places would give.
    places
        By class and decision; the last has the pneumonias that were found.
    kept
        Share of the decisions that stay the same if everything outside the hull gets the mean gray level inside it.
    dice
        Mean Dice coefficient of the lungs found and the masks; None if the model finds no lungs.
    joined
        Radiographs joined of a half with pneumonia and a normal one.
    """

    images: int
    lung_area: float
    hull_area: float
    places: tuple[Place, ...]
    kept: Estimate
    dice: Estimate | None
    joined: tuple[Joined, ...]


def measure_evidence(subject: Subject, pixels: Pixels, cases: Cases, outputs: Outputs, masks: LungMasks) -> Evidence:
    """Compare heatmaps with true lung masks, at the default operating point.

    Parameters
    ----------
    pixels, cases, outputs
        The images, (N, H, W, 1) uint8 in [0, 255], and what the model says of them.
    masks
        The lungs of these images; some may have none.
    """
    known = np.flatnonzero(masks.known)
    lungs = masks.pixels[known, :, :, 0] > 0
    inside = np.stack([lungs, np.array([convex_hull(mask) for mask in lungs])], axis=-1)
    shares = np.array(
        [_shares(heatmap, mask, subject.heatmap) for heatmap, mask in zip(outputs.heatmap[known], inside, strict=True)]
    ).reshape(-1, 3)
    threshold = subject.operating_points[0].threshold
    decided = cases.probability >= threshold
    alone = subject.run(without_surroundings(pixels[known], inside[..., 1])).probability >= threshold
    kept = mean_over_images((alone == decided[known]).astype(float), cases.patients[known])
    places = []
    for truth, call in ((0, 0), (0, 1), (1, 0), (1, 1)):
        chosen = (cases.labels[known] == truth) & (decided[known] == call)
        found = shares[chosen]
        full = np.isfinite(found[:, 0])
        patients = cases.patients[known][chosen][full]
        estimates = (mean_over_images(values, patients) for values in found[full].T)
        places.append(Place(CLASSES[truth], CLASSES[call], len(found), int((~full).sum()), *estimates))
    overlap = None
    if outputs.lungs is not None:
        overlap = mean_over_images(dice_scores(outputs.lungs[known], lungs), cases.patients[known])
    lung_area, hull_area = (float(area) for area in inside.mean(axis=(0, 1, 2)))
    joined = measure_joined(subject, pixels[known], cases.only(masks.known), lungs)
    return Evidence(len(known), lung_area, hull_area, tuple(places), kept, overlap, joined)


def without_surroundings(pixels: Pixels, hull: npt.NDArray[np.bool_]) -> Pixels:
    """Give everything outside the hull, (N, H, W), the mean gray level inside it: (N, H, W, 1) uint8."""
    inside = hull[..., np.newaxis]
    mean = (pixels * inside).sum(axis=(1, 2, 3), keepdims=True) / np.maximum(
        inside.sum(axis=(1, 2, 3), keepdims=True), 1
    )
    return np.where(inside, pixels, mean.astype(np.uint8))


def dice_scores(lungs: FloatArray, masks: npt.NDArray[np.bool_]) -> Floats:
    """Dice coefficient of each image (Dice 1945): the lungs are enlarged to the size of the mask and cut at 0.5.

    Parameters
    ----------
    lungs, masks
        (N, h, w) float32 in [0, 1], and (N, H, W) bool.

    Returns
    -------
    (N,) float in [0, 1]; 1 if both are empty.
    """
    size = masks.shape[:0:-1]
    found = [cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) >= LUNG for each in lungs]
    return dice(np.array(found), masks)


def _shares(heatmap: FloatArray, inside: npt.NDArray[np.bool_], geometry: HeatmapGeometry) -> Sequence[float]:
    """Share of a heatmap in the lungs, in the hull, and whether its hottest pixel is in the hull; NaN if it is empty.

    `inside` is (H, W, 2) bool: lungs and hull.
    """
    height, width = inside.shape[:2]
    contract = InputContract(height, width)
    in_lungs, in_hull = (evidence_inside(heatmap, inside[..., n], geometry, contract) for n in (0, 1))
    if in_lungs is None or in_hull is None:
        return [np.nan] * 3
    heat = upsample(heatmap, geometry, contract, height, width)
    return [in_lungs, in_hull, inside[..., 1].ravel()[heat.argmax()]]

"""Whether the heatmap shows what the network decides by, and whether that is within the chest.

Insertion and deletion (Petsiuk et al. 2018, RISE), the share of the heatmap's energy in the border of the image, and
the cascading randomisation of `cxr_edge.train.evaluation.randomisation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.statistics import Floats
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.explanation.gradcam import upsample
from cxr_edge.runtime.imaging.image import Gray
from cxr_edge.runtime.imaging.preprocess import preprocess
from cxr_edge.train.evaluation.metrics import Cases, Estimate, mean_over_images
from cxr_edge.train.evaluation.randomisation import Randomised, cascade
from cxr_edge.train.evaluation.subject import Pixels, Subject

#: Images, of pneumonia and decided so, whose curves are drawn and whose heatmaps a randomised network repeats.
SAMPLE = 64
#: Shares of the pixels that are deleted or inserted; 4 curves of 16 are one batch of 64.
SHARES = np.linspace(0, 1, 16)
#: Outer part of the height and of the width, on each side, that counts as border.
BORDER = 0.1
#: Of the Gaussian that takes an opacity away, at an input of 224 (pixels).
BLUR_SIGMA = 16.0


@dataclass(frozen=True)
class Curves:
    """Probability of pneumonia while pixels are replaced, in the order of the heatmap and in a random one.

    Attributes
    ----------
    way
        `deletion`: hottest pixels first, by those of the substitute. `insertion`: hottest first, into the substitute.
    substitute
        What stands in for a pixel of the radiograph.
    heatmap, random
        (N, 16) float: the probability at each of `SHARES`, image by image.
    heatmap_area, random_area
        Area under the mean curve, in [0, 1].
    gain
        What the order of the heatmap is better by, image by image: less area in deletion, more in insertion.
    """

    way: str
    substitute: str
    heatmap: Floats
    random: Floats
    heatmap_area: Estimate
    random_area: Estimate
    gain: Estimate

    @property
    def of_substitute(self) -> float:
        """Mean probability of the substitutes alone; where it is high, the curves test nothing."""
        return float(self.heatmap[:, -1 if self.way == "deletion" else 0].mean())


@dataclass(frozen=True)
class Border:
    """Share of the heatmaps' energy in the outer `BORDER` of the image on each side.

    Attributes
    ----------
    truth, decided
        Which images; `None`: any.
    images, empty
        How many, and how many of them have a heatmap without energy, whose share is not defined and left out.
    share, cropped
        Mean share of the images as they are, and after that border was cut away and the rest enlarged.
    """

    truth: str | None
    decided: str | None
    images: int
    empty: int
    share: Estimate
    cropped: Estimate


@dataclass(frozen=True)
class Faithfulness:
    """Everything that was measured of the heatmaps.

    Attributes
    ----------
    sample
        Number of images of the curves and of the randomisation.
    curves
        Empty if there was no such image.
    randomised
        Empty for a bundle, too, whose weights are not at hand.
    border_area
        Share of the image's area that is border.
    borders
        All images, then by truth and decision.
    """

    sample: int
    curves: tuple[Curves, ...]
    randomised: tuple[Randomised, ...]
    border_area: float
    borders: tuple[Border, ...]


def measure_faithfulness(
    subject: Subject, pixels: Pixels, cases: Cases, heatmaps: FloatArray, step: Callable[[str], None]
) -> Faithfulness:
    """Measure the heatmaps of a model at its default operating point.

    Parameters
    ----------
    pixels, cases, heatmaps
        (N, H, W, 1) uint8 in [0, 255], what the model says of them, and its heatmaps: (N, h, w) float32 ≥ 0.
    step
        Told what is done next.
    """
    decided = cases.probability >= subject.operating_points[0].threshold
    sample = _sample(np.flatnonzero(decided & (cases.labels == 1) & (heatmaps.max(axis=(1, 2)) > 0)))
    curves: list[Curves] = []
    randomised: tuple[Randomised, ...] = ()
    if len(sample):
        chosen, maps, patients = pixels[sample], heatmaps[sample], cases.patients[sample]
        for name, substitutes in _substitutes(chosen, pixels[(cases.labels == 0) & ~decided]).items():
            step(f"heatmap: deletion and insertion, {name}")
            curves += _curves(subject, chosen, substitutes, name, maps, patients)
        if subject.network is not None:
            step("heatmap: randomised networks")
            randomised = cascade(subject.network, lambda x: subject.run(x).heatmap, chosen, maps)
    step("heatmap: border")
    cropped = subject.run(np.stack([crop_border(image[:, :, 0]) for image in pixels])).heatmap
    shares = [border_share(each, subject.heatmap, subject.input) for each in (heatmaps, cropped)]
    inner = np.prod([side - 2 * round(BORDER * side) for side in pixels.shape[1:3]])
    area = 1 - float(inner) / (pixels.shape[1] * pixels.shape[2])
    return Faithfulness(len(sample), tuple(curves), randomised, area, _borders(cases, decided, *shares))


def replacing_order(
    heatmap: FloatArray, geometry: HeatmapGeometry, contract: InputContract, random: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Orders in which to replace pixels: hottest first, and one at random.

    The random one is of a map of as many cells, placed alike, because single pixels here and there would do something
    else to an image than regions do. It also parts pixels of equal heat.

    Returns
    -------
    Two (H, W) float, each pixel's place in the order, in [0, 1).
    """
    by_chance = upsample(
        random.random(heatmap.shape, np.float32), geometry, contract, contract.height, contract.width
    ).ravel()
    heat = upsample(heatmap, geometry, contract, contract.height, contract.width).ravel()
    places = []
    for order in (np.lexsort((by_chance, -heat)), np.argsort(by_chance, kind="stable")):
        place = np.empty(len(order))
        place[order] = np.arange(len(order)) / len(order)
        places.append(place.reshape(contract.height, contract.width))
    return places[0], places[1]


def border_share(heatmaps: FloatArray, geometry: HeatmapGeometry, contract: InputContract) -> Floats:
    """Share of each heatmap's energy within `BORDER` of an edge, its cells placed where they look.

    Parameters
    ----------
    heatmaps
        (N, h, w) float32 ≥ 0.

    Returns
    -------
    (N,) float in [0, 1]; NaN where a map is empty.
    """
    y, x = round(BORDER * contract.height), round(BORDER * contract.width)
    shares = np.full(len(heatmaps), np.nan)
    for row in np.flatnonzero(heatmaps.max(axis=(1, 2)) > 0):
        heat = upsample(heatmaps[row], geometry, contract, contract.height, contract.width)
        shares[row] = 1 - heat[y : contract.height - y, x : contract.width - x].sum() / heat.sum()
    return shares


def crop_border(image: Gray) -> Gray:
    """Cut `BORDER` away on each side and enlarge the rest: (H, W) uint8 -> (H, W, 1) uint8."""
    height, width = image.shape
    y, x = round(BORDER * height), round(BORDER * width)
    return preprocess(image[y : height - y, x : width - x], height, width)


def _sample(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False))


def _substitutes(chosen: Pixels, normal: Pixels) -> dict[str, Pixels]:
    """What may stand in for the pixels of (N, H, W, 1) images: name -> the same shape.

    A blurred radiograph is RISE's, but to a network that takes haze for pneumonia it is no absence of evidence: its
    probability says whether that curve means anything. Radiographs of others, normal and decided so, always are.
    """
    sigma = BLUR_SIGMA * chosen.shape[1] / 224
    found = {
        "blurred": np.stack([cv2.GaussianBlur(image[:, :, 0], (0, 0), sigma) for image in chosen])[..., np.newaxis]
    }
    if len(normal):
        found["a normal radiograph"] = normal[np.random.default_rng(0).integers(0, len(normal), len(chosen))]
    return found


def _curves(
    subject: Subject, pixels: Pixels, substitutes: Pixels, name: str, maps: FloatArray, patients: npt.NDArray[np.str_]
) -> list[Curves]:
    random = np.random.default_rng(0)
    probabilities = np.empty((len(pixels), 2, 2, len(SHARES)))
    shares = SHARES[:, np.newaxis, np.newaxis]
    for row, (image, substitute) in enumerate(zip(pixels, substitutes, strict=True)):
        places = replacing_order(maps[row], subject.heatmap, subject.input, random)
        replaced = np.stack([[place < shares, place >= shares] for place in places], axis=1)
        mixed = np.where(replaced[..., np.newaxis], substitute, image)
        probabilities[row] = subject.run(mixed.reshape(-1, *image.shape)).probability.reshape(2, 2, -1)
    found = []
    for way, (heatmap, by_chance), sign in zip(
        ("deletion", "insertion"), probabilities.transpose(1, 2, 0, 3), (-1, 1), strict=True
    ):
        areas = [_area(each) for each in (heatmap, by_chance)]
        estimates = (mean_over_images(each, patients) for each in (*areas, sign * (areas[0] - areas[1])))
        found.append(Curves(way, name, heatmap, by_chance, *estimates))
    return found


def _area(curves: Floats) -> Floats:
    """Area under each of (N, 16) curves, by trapezoids: (N,)."""
    from scipy.integrate import trapezoid

    return np.asarray(trapezoid(curves, SHARES, axis=1))


def _borders(cases: Cases, decided: npt.NDArray[np.bool_], share: Floats, cropped: Floats) -> tuple[Border, ...]:
    def border(truth: str | None, call: str | None, inside: npt.NDArray[np.bool_]) -> Border:
        estimates = []
        for values in (share, cropped):
            known = inside & np.isfinite(values)
            estimates.append(mean_over_images(values[known], cases.patients[known]))
        return Border(truth, call, int(inside.sum()), int((inside & np.isnan(share)).sum()), *estimates)

    parts = [(truth, call) for truth in (0, 1) for call in (0, 1)]
    return (
        border(None, None, np.ones(len(share), bool)),
        *(border(CLASSES[t], CLASSES[c], (cases.labels == t) & (decided == c)) for t, c in parts),
    )

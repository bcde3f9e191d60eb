"""Tests of whether the heatmaps show what the network decides by, and whether that lies within the chest.

These are deletion and insertion (Petsiuk et al. 2018, RISE), the share of the heatmap's energy in the border of the
image, and the cascading randomisation of `cxr_edge.train.evaluation.randomisation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES, Pixels
from cxr_edge.common.metrics import Cases, Estimate, mean_over_images
from cxr_edge.common.statistics import Floats
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.explanation.gradcam import upsample
from cxr_edge.runtime.imaging.gray import Gray
from cxr_edge.runtime.imaging.preprocess import preprocess
from cxr_edge.train.evaluation.randomisation import Randomised, cascade
from cxr_edge.train.evaluation.subject import Subject

#: Largest number of true positives for the curves and for randomisation.
SAMPLE = 64
#: Shares of the pixels that are deleted or inserted; 4 curves of 16 are one batch of 64.
SHARES = np.linspace(0, 1, 16)
#: Share of height and width on each side that counts as border.
BORDER = 0.1
#: Standard deviation of the Gaussian that removes an opacity, at an input of 224 (pixels).
BLUR_SIGMA = 16.0
WAYS = ("deletion", "insertion")


@dataclass(frozen=True)
class Curves:
    """Probability of pneumonia while pixels are replaced, in the order of the heatmap and in a random order.

    Attributes
    ----------
    way
        `deletion`: the substitute replaces the image, hottest pixels first. `insertion`: the image replaces the
        substitute, hottest pixels first.
    substitute
        Name of the image that replaces the radiograph.
    heatmap, random
        (N, 16) float: the probability at each of `SHARES` for each image.
    heatmap_area, random_area
        Area under the mean curve, in [0, 1].
    gain
        Mean advantage of the order of the heatmap: less area in deletion, more area in insertion.
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
        """Mean probability of the substitutes alone. If it is high, the curves test nothing."""
        return float(self.heatmap[:, -1 if self.way == "deletion" else 0].mean())


@dataclass(frozen=True)
class Border:
    """Share of the heatmaps' energy in the outer `BORDER` of the image on each side.

    Attributes
    ----------
    truth, decided
        Class and decision of the images; `None` is any.
    images, empty
        Number of images, and number of those without energy in the heatmap, which are left out of the shares.
    share, cropped
        Mean share of the original images, and after the border was cropped and the rest enlarged.
    """

    truth: str | None
    decided: str | None
    images: int
    empty: int
    share: Estimate
    cropped: Estimate


@dataclass(frozen=True)
class Faithfulness:
    """Results of all tests of the heatmaps.

    Attributes
    ----------
    sample
        Number of images for the curves and for randomisation.
    curves
        Empty if there is no such image.
    randomised
        Also empty for a bundle, whose weights are not available.
    border_area
        Share of the border in the area of the image.
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
        (N, H, W, 1) uint8 in [0, 255], the model's output for them, and its heatmaps: (N, h, w) float32 ≥ 0.
    step
        Called with the name of each step.
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
    """Orders in which to replace pixels: hottest first, and at random.

    The random order comes from a random map with the same cells, because replacing single pixels affects an image
    differently from replacing regions. It also decides between pixels of equal heat.

    Returns
    -------
    Two (H, W) float: each pixel's place in the order, in [0, 1).
    """
    cells = random.random(heatmap.shape, np.float32)
    height, width = contract.height, contract.width
    by_chance, heat = (upsample(each, geometry, contract, height, width).ravel() for each in (cells, heatmap))
    places = []
    for order in (np.lexsort((by_chance, -heat)), np.argsort(by_chance, kind="stable")):
        place = np.empty(len(order))
        place[order] = np.arange(len(order)) / len(order)
        places.append(place.reshape(height, width))
    return places[0], places[1]


def border_share(heatmaps: FloatArray, geometry: HeatmapGeometry, contract: InputContract) -> Floats:
    """Share of each heatmap's energy within `BORDER` of an edge; cells are placed by `geometry`.

    Parameters
    ----------
    heatmaps
        (N, h, w) float32 ≥ 0.

    Returns
    -------
    (N,) float in [0, 1]; NaN if a map is empty.
    """
    y, x = round(BORDER * contract.height), round(BORDER * contract.width)
    shares = np.full(len(heatmaps), np.nan)
    for row in np.flatnonzero(heatmaps.max(axis=(1, 2)) > 0):
        heat = upsample(heatmaps[row], geometry, contract, contract.height, contract.width)
        shares[row] = 1 - heat[y : contract.height - y, x : contract.width - x].sum() / heat.sum()
    return shares


def crop_border(image: Gray) -> Gray:
    """Crop `BORDER` on each side and enlarge the rest: (H, W) uint8 -> (H, W, 1) uint8."""
    height, width = image.shape
    y, x = round(BORDER * height), round(BORDER * width)
    return preprocess(image[y : height - y, x : width - x], height, width)


def _sample(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False))


def _substitutes(chosen: Pixels, normal: Pixels) -> dict[str, Pixels]:
    """Substitutes for (N, H, W, 1) images: name -> the same shape.

    RISE uses the blurred image. A network that takes haze for pneumonia may find evidence in it: its probability says
    whether the curve is meaningful. True negatives of other patients have no evidence.
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
    """The curves of all `WAYS` for one kind of substitute."""
    random = np.random.default_rng(0)
    probability = np.empty((len(WAYS), 2, len(pixels), len(SHARES)))
    for row, (image, substitute) in enumerate(zip(pixels, substitutes, strict=True)):
        orders = replacing_order(maps[row], subject.heatmap, subject.input, random)
        probability[:, :, row] = _replace(subject, image, substitute, orders)
    return [_compare(way, name, both[0], both[1], patients) for way, both in zip(WAYS, probability, strict=True)]


def _replace(subject: Subject, image: Gray, substitute: Gray, orders: Sequence[Floats]) -> Floats:
    """Probability while pixels are deleted and inserted in each of two orders: (ways, orders, shares)."""
    place, shares = np.stack(orders)[:, np.newaxis], SHARES[:, np.newaxis, np.newaxis]
    is_substitute = np.stack([place < shares, place >= shares])  # (ways, orders, shares, H, W)
    mixed = np.where(is_substitute[..., np.newaxis], substitute, image)
    return subject.run(mixed.reshape(-1, *image.shape)).probability.reshape(is_substitute.shape[:3])


def _compare(way: str, substitute: str, heatmap: Floats, random: Floats, patients: npt.NDArray[np.str_]) -> Curves:
    """Compare two orders by the areas under their (N, 16) curves."""
    areas = _area(heatmap), _area(random)
    gain = areas[1] - areas[0] if way == "deletion" else areas[0] - areas[1]
    estimates = (mean_over_images(values, patients) for values in (*areas, gain))
    return Curves(way, substitute, heatmap, random, *estimates)


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

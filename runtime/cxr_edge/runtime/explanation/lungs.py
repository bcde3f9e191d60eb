"""What the map of the lungs says: whether both lungs are in the image, and how much of the evidence lies in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.explanation.gradcam import interpolation

#: Probability from which a tile belongs to a lung.
LUNG = 0.5
#: Share of the image that a region needs to be a lung; smaller ones are specks. The smallest lung of the masks of the
#: training data has 6.9 %.
SMALLEST_LUNG = 0.015
#: A lung is cut off if it touches a border of the image along this share of its own width or height. Measured on the
#: masks of the training data: it holds for 3 % of the images, and for 86 % or more after a fifth of the lungs' height
#: or width was cut away at one side.
CUT_OFF = 0.6
#: A heatmap whose peak contributes less than this to the logit is empty.
EMPTY_LOGIT = 1e-3

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lungs:
    """The lungs in one image.

    Attributes
    ----------
    found
        `both`, `one` or `none`; `cut off` if a lung reaches beyond the border of the image.
    hull
        (h, w) bool: the convex hull of the lungs.
    """

    found: str
    hull: Mask


class _Box(NamedTuple):
    """Area of a region and the box around it, in tiles."""

    area: int = 0
    left: int = 0
    top: int = 0
    width: int = 0
    height: int = 0


def find_lungs(lungs: FloatArray) -> Lungs:
    """Find the lungs in their map, (h, w) float32 in [0, 1].

    A lung is a region of tiles of probability ≥ `LUNG` that share sides, with at least `SMALLEST_LUNG` of the image.
    Only the two largest count.
    """
    regions, boxes = _regions(lungs >= LUNG)
    largest = sorted(range(1, len(boxes)), key=lambda n: -boxes[n].area)[:2]
    numbers = [n for n in largest if boxes[n].area >= SMALLEST_LUNG * lungs.size]
    found = ("none", "one", "both")[len(numbers)]
    if any(_is_cut_off(regions, n, boxes[n]) for n in numbers):
        found = "cut off"
    is_lung = np.zeros(len(boxes), bool)
    is_lung[numbers] = True
    return Lungs(found, convex_hull(is_lung[regions]))


def _regions(mask: Mask) -> tuple[npt.NDArray[np.int32], list[_Box]]:
    """Number the regions of tiles that share sides; 0 is the rest.

    `cv2.connectedComponentsWithStats` gives the same, but wakes OpenCV's threads even for so few tiles: they took a
    fifth of the processor time of a prediction.
    """
    regions = -mask.astype(np.int32)  # -1: not numbered yet
    boxes = [_Box()]
    while regions.flat[first := int((regions < 0).argmax())] < 0:
        row, column = divmod(first, mask.shape[1])
        area, _, _, sides = cv2.floodFill(regions, None, (column, row), len(boxes), flags=4)
        boxes.append(_Box(area, *sides))
    return regions, boxes


def _is_cut_off(regions: npt.NDArray[np.int32], n: int, box: _Box) -> bool:
    """Whether region `n` touches a border, given the box around it."""
    rows, columns = regions.shape
    sides = (
        (box.left == 0, regions[:, 0], box.height),
        (box.top == 0, regions[0], box.width),
        (box.left + box.width == columns, regions[:, -1], box.height),
        (box.top + box.height == rows, regions[-1], box.width),
    )
    return any(touches and np.count_nonzero(side == n) >= CUT_OFF * length for touches, side, length in sides)


def convex_hull(mask: Mask) -> Mask:
    """Convex hull of the centres of a mask's tiles, (h, w) bool; it is empty if the mask is.

    As `cv2.fillConvexPoly` draws it: a tile belongs to it if its centre lies inside, or at most half a tile outside.
    """
    hull = np.zeros(mask.shape, np.uint8)
    points = cv2.findNonZero(mask.view(np.uint8))
    if points is not None:
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull.view(np.bool_)


def evidence_inside(
    heatmap: FloatArray, region: Mask, geometry: HeatmapGeometry, contract: InputContract
) -> float | None:
    """Share of the evidence of a heatmap that lies in a region of the image.

    The evidence of a pixel is the heatmap as it is drawn: interpolated between the centres of the cells
    (`gradcam.upsample`), over the whole input of the network.

    Parameters
    ----------
    heatmap
        (h, w) float32 ≥ 0.
    region
        Tiles of the image, (rows, columns) bool: one for each pixel of the network's input, or coarser.

    Returns
    -------
    float in [0, 1], or None if the heatmap is empty: all its cells contribute less than `EMPTY_LOGIT`.
    """
    if heatmap.max() < EMPTY_LOGIT:
        return None
    rows = _tile_weights(contract.height, region.shape[0], heatmap.shape[0], geometry)
    columns = _tile_weights(contract.width, region.shape[1], heatmap.shape[1], geometry)
    evidence = rows @ heatmap @ columns.T
    return float(evidence[region].sum() / evidence.sum())


@lru_cache(maxsize=8)
def _tile_weights(pixels: int, tiles: int, cells: int, geometry: HeatmapGeometry) -> FloatArray:
    """Weights of the cells in the mean of each tile's pixels along one axis: (tiles, cells) float32, rows sum to 1."""
    start, ends = np.arange(pixels), np.linspace(0, pixels, tiles + 1)[:, np.newaxis]
    overlap = np.minimum(start + 1, ends[1:]) - np.maximum(start, ends[:-1])
    shares = np.maximum(overlap, 0) * (tiles / pixels)
    return np.asarray(shares @ interpolation(pixels, pixels, cells, geometry), np.float32)

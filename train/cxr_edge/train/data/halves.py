"""Radiographs joined of two halves, left and right of the middle between the lungs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels

#: The middle between the lungs lies in this part of an image's width; masks that say otherwise are not trusted.
MIDDLE = (0.35, 0.65)


def middle(lungs: npt.NDArray[np.bool_]) -> int:
    """Column (pixels) between the lungs: that of their centre of mass, (H, W) bool, or the middle of an empty mask."""
    width = lungs.shape[1]
    columns = np.flatnonzero(lungs) % width
    centre = columns.mean() if columns.size else width / 2
    return int(np.clip(round(float(centre)), MIDDLE[0] * width, MIDDLE[1] * width))


def join(image: Pixels, other: Pixels, kept: npt.NDArray[np.bool_], shift: int) -> Pixels:
    """Replace columns of an image by those of another one.

    Parameters
    ----------
    image, other
        (H, W, C) uint8 in [0, 255]; further channels may be masks.
    kept
        (W,) bool: the columns that stay.
    shift
        How far the other image is moved to the right first (pixels), so that the middles meet. Its border is repeated.

    Returns
    -------
    (H, W, C) uint8.
    """
    columns = np.clip(np.arange(image.shape[1]) - shift, 0, image.shape[1] - 1)
    return np.where(kept[:, np.newaxis], image, other[:, columns])

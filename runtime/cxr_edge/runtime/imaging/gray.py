"""What every decoder returns: a radiograph as 8-bit grayscale."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import ImageError

#: (H, W) uint8 in [0, 255]; dense structures are bright.
Gray: TypeAlias = npt.NDArray[np.uint8]


def stretch(values: npt.NDArray[np.generic], name: str) -> Gray:
    """Map [min, max] of the image to [0, 255], because detectors use only 10 to 14 of 16 bits."""
    with np.errstate(over="ignore"):  # a double beyond the range of float32 becomes infinite
        low, high = float(np.float32(values.min())), float(np.float32(values.max()))
    if not high - low <= float(np.finfo(np.float32).max):
        raise ImageError(f"{name}: pixels that are not finite numbers; expected finite ones. Save the picture again")
    gray = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 64):  # limits the memory of the float32 copy
        scaled = values[row : row + 64].astype(np.float32)
        scaled -= low
        scaled *= 255.0 / max(high - low, 1e-12)
        gray[row : row + 64] = np.rint(scaled)
    return gray

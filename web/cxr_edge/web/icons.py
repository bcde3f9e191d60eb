"""The icon of the page, drawn: two lungs and a windpipe. `python -m cxr_edge.web.icons` writes the files."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.web import page_folder

SIDES = (192, 512)
#: Colours in OpenCV's order: blue, green, red.
GROUND, LUNG, WINDPIPE = (78, 67, 16), (245, 240, 226), (214, 198, 111)
#: Right half of a lung on a square of side 1. All of it lies in the circle of radius 0.4 that masks of icons keep.
OUTLINE = (
    (0.55, 0.40),
    (0.60, 0.27),
    (0.66, 0.26),
    (0.74, 0.38),
    (0.79, 0.56),
    (0.78, 0.70),
    (0.68, 0.71),
    (0.55, 0.63),
)
WINDPIPE_BOX = ((0.475, 0.17), (0.525, 0.45))


def draw_icon(side: int) -> npt.NDArray[np.uint8]:
    """Draw the icon: (side, side, 3) uint8 BGR; drawn four times as large and reduced, for smooth edges."""
    large = 4 * side
    picture = np.full((large, large, 3), GROUND, np.uint8)
    for mirrored in (False, True):
        corners = [((1 - x if mirrored else x) * large, y * large) for x, y in OUTLINE]
        points = np.round(corners).astype(np.int32)
        cv2.fillPoly(picture, [points], LUNG)
        cv2.polylines(picture, [points], True, LUNG, round(0.05 * large), cv2.LINE_8)
    (left, top), (right, bottom) = [(round(x * large), round(y * large)) for x, y in WINDPIPE_BOX]
    cv2.rectangle(picture, (left, top), (right, bottom), WINDPIPE, cv2.FILLED)
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def write_icons() -> None:
    """Write `icon-SIDE.png` into the page's folder."""
    for side in SIDES:
        cv2.imwrite(str(page_folder() / f"icon-{side}.png"), draw_icon(side), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    write_icons()

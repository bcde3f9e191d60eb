"""Helpers that all reports share for diagrams and pictures: PNG and JPEG files in memory, colours, scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

BLUE, RED, GREY = "#1f6feb", "#b3261e", "#8a949e"
#: Probabilities are drawn on a logit scale within these limits.
PROBABILITY_LIMITS = (1e-4, 1 - 1e-4)
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class GalleryImage:
    """A heatmap over a radiograph as a JPEG or PNG file, the true class and the decision."""

    picture: bytes
    name: str
    truth: str
    decided: str
    probability: float


def draw_png(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """Draw on new matplotlib axes; return the figure of `width` × `height` inches as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.subplots())
    return figure_png(figure)


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def shrink(gray: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Reduce (H, W) uint8 so that the longer side has at most `side` pixels."""
    factor = side / max(gray.shape)
    if factor >= 1:
        return gray
    height, width = (round(length * factor) for length in gray.shape)
    return np.asarray(cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    """(H, W) gray or (H, W, 3) RGB uint8 as a JPEG file."""
    bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpeg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def set_probability_scale(axes: Any, axis: str) -> None:
    """Give axis `x` or `y` a logit scale with probabilities as ticks."""
    getattr(axes, f"set_{axis}scale")("logit")
    which = getattr(axes, f"{axis}axis")
    which.set_ticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    which.set_ticks([], minor=True)
    getattr(axes, f"set_{axis}lim")(PROBABILITY_LIMITS)

"""Preprocessing parity: the effect of decoding and resizing by another library on the trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage
from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines import Outputs

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PreprocessingParity:
    """Differences between the runtime's decoding and resizing and those of another loader.

    Attributes
    ----------
    pixel_max, pixel_mean
        Largest and mean absolute difference of pixels in [0, 255].
    probability_max, flips
        Largest |Δprobability| of the trained network, and number of flips at the default operating point.
    """

    loader: str
    images: int
    pixel_max: int
    pixel_mean: float
    probability_max: float
    flips: int


def compare_loaders(
    images: Sequence[LabelledImage],
    pixels: Pixels,
    ours: Outputs,
    network: Callable[[Pixels], Outputs],
    point: OperatingPoint,
) -> list[PreprocessingParity]:
    """Feed the trained network with the same image files, loaded by each of `LOADERS`.

    Parameters
    ----------
    pixels, ours
        (N, H, W, 1) uint8 as read by the runtime, and the outputs of the network for them.
    """
    height, width = pixels.shape[1:3]
    return [
        compare_pixels(
            name, np.stack([load(image.path, height, width) for image in images]), pixels, ours, network, point
        )
        for name, load in LOADERS.items()
    ]


def compare_pixels(
    loader: str,
    theirs: Pixels,
    pixels: Pixels,
    ours: Outputs,
    network: Callable[[Pixels], Outputs],
    point: OperatingPoint,
) -> PreprocessingParity:
    """Compare the pixels of another loader with those of the runtime, both (N, H, W, 1) uint8, and their effect.

    Parameters
    ----------
    ours
        Outputs of the network for `pixels`.
    """
    difference = np.abs(theirs.astype(int) - pixels.astype(int))
    differ = difference.any(axis=(1, 2, 3))
    change = ours.probability.copy()
    if differ.any():
        change[differ] = network(theirs[differ]).probability
    return PreprocessingParity(
        loader=loader,
        images=len(pixels),
        pixel_max=int(difference.max()),
        pixel_mean=float(difference.mean()),
        probability_max=float(np.abs(change - ours.probability).max()),
        flips=int(np.sum(point.answer(change) != point.answer(ours.probability))),
    )


def _pillow(path: Path, height: int, width: int) -> Pixels:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        gray = ImageOps.exif_transpose(image).convert("L")
        if gray.size != (width, height):
            gray = gray.resize((width, height), Image.Resampling.BOX)
        return np.asarray(gray, np.uint8)[:, :, np.newaxis]


def _keras(path: Path, height: int, width: int, interpolation: str) -> Pixels:
    import keras

    size = (height, width)
    image = keras.utils.load_img(path, color_mode="grayscale", target_size=size, interpolation=interpolation)
    return np.asarray(image, np.uint8)[:, :, np.newaxis]


#: Other ways to load an image. `load_img` of Keras takes the nearest pixel by default; its data sets interpolate
#: bilinearly.
LOADERS: dict[str, Callable[[Path, int, int], Pixels]] = {
    "Pillow, box filter": _pillow,
    "Keras load_img, nearest (its default)": lambda path, h, w: _keras(path, h, w, "nearest"),
    "Keras load_img, bilinear": lambda path, h, w: _keras(path, h, w, "bilinear"),
}

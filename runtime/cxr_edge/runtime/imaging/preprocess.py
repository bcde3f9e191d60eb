"""Preprocessing of radiographs to the input of the network; the project has no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import cpu_count
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.gray import Gray
from cxr_edge.runtime.imaging.image import ImageSource, read_image

#: A JPEG is decoded to sides of at least this many times the network's input, then area-averaged. The reduced
#: transforms of libjpeg only approximate an average of pixels. Measured on 70 radiographs of 0.1 to 4 megapixels:
#:
#: ===== ======= =========================== ==================== =================
#: scale reduced time against OpenCV alone   max |Δp|: fp32, int8 flips: fp32, int8
#: ===== ======= =========================== ==================== =================
#: 1     68      0.66                        0.079, 0.067         1, 2
#: 2     39      0.72                        0.018, 0.054         0, 1
#: 3     4       0.79                        0.005, 0.008         0, 0
#: none  0       0.81                        0.000, 0.004         0, 0
#: ===== ======= =========================== ==================== =================
#:
#: Images of detectors have sides of 2,000 to 4,300 pixels and are all reduced at 3.
SCALE = 3
#: Maximum number of pixels of an integral image with 32-bit sums: 2^31 / 255.
MAX_INTEGRAL = 2**31 // 255
T = TypeVar("T")


def minimum_sides(height: int = 224, width: int = 224) -> tuple[int, int]:
    """Sides that `read_image` must deliver if `preprocess` resizes to `height` × `width` afterwards."""
    return SCALE * height, SCALE * width


def read_input(source: ImageSource, height: int = 224, width: int = 224, max_pixels: int = MAX_PIXELS) -> Gray:
    """Read one radiograph as the network's input; training, verification and the device all use this function.

    Returns
    -------
    (height, width, 1) uint8 in [0, 255].

    Raises
    ------
    ImageError, MissingExtraError
        Like `read_image`.
    """
    return preprocess(read_image(source, *minimum_sides(height, width), max_pixels), height, width)


def preprocess(gray: Gray, height: int = 224, width: int = 224) -> Gray:
    """Resize one radiograph to the network's input.

    The aspect ratio is not kept, as in training. Reduction uses area averaging, which uses every source pixel; bilinear
    interpolation skips most of them and changed probabilities by up to 0.35.

    Parameters
    ----------
    gray
        (H, W) uint8 in [0, 255].

    Returns
    -------
    (height, width, 1) uint8 in [0, 255].
    """
    if gray.shape != (height, width):
        shrinks = gray.shape[0] >= height and gray.shape[1] >= width
        if shrinks and gray.size <= MAX_INTEGRAL:
            gray = _area_average(gray, height, width)
        else:
            gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return gray[:, :, np.newaxis]


def _area_average(gray: Gray, height: int, width: int) -> Gray:
    """Average the area under each pixel of the result.

    The result equals `cv2.INTER_AREA` up to rounding, in half the time. The integral image is interpolated at the
    corners of the areas, which is exact because it is bilinear within a pixel (F. C. Crow, "Summed-area tables for
    texture mapping", SIGGRAPH 1984). Integers and single IEEE operations give the same bits on every processor.
    """
    sums = cv2.integral(gray)  # (H + 1, W + 1) int32: sum of all pixels above and to the left
    y, down = _edges(gray.shape[0], height)
    x, right = _edges(gray.shape[1], width)
    upper = sums.take(y, axis=0)
    lower = sums.take(y + 1, axis=0)
    lower -= upper  # the sums of one row of pixels
    corners = _at_columns(upper, x, right) + _at_columns(lower, x, right) * down[:, np.newaxis]
    areas = corners[1:] - corners[:-1]
    areas = areas[:, 1:] - areas[:, :-1]
    areas *= height * width / gray.size
    return np.rint(areas, out=areas).astype(np.uint8)


def _edges(size: int, parts: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Edges of `parts` equal parts of `size` pixels: index of the pixel, and position within it in [0, 1]."""
    edges = np.arange(parts + 1, dtype=np.float64) * (size / parts)
    whole: npt.NDArray[np.intp] = np.minimum(edges.astype(np.intp), size - 1)
    return whole, edges - whole


def _at_columns(
    sums: npt.NDArray[np.int32], x: npt.NDArray[np.intp], right: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    left = sums.take(x, axis=1)
    return left + (sums.take(x + 1, axis=1) - left) * right


def read_inputs(
    sources: Sequence[ImageSource], height: int = 224, width: int = 224, max_pixels: int = MAX_PIXELS
) -> Iterator[Gray | ImageError]:
    """Decode and preprocess many images on all cores, in order, in chunks.

    Yields
    ------
    (height, width, 1) uint8, or the `ImageError` of an image that cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor  # takes 3 ms, which a single image does not need

    def read(source: ImageSource) -> Gray | ImageError:
        try:
            return read_input(source, height, width, max_pixels)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(cpu_count()) as pool:
        for chunk in chunks(sources, 64):  # limits the memory of decoded images
            yield from pool.map(read, chunk)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split `items` into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

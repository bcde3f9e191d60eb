"""Grayscale radiograph -> network input. The only preprocessing in the project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from typing import TypeVar

import cv2
import numpy as np

from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.image import Gray, ImageSource, read_image

T = TypeVar("T")


def preprocess(gray: Gray, height: int = 224, width: int = 224) -> Gray:
    """Resize one radiograph to the network's input.

    The aspect ratio is not kept: the networks are trained that way. Area interpolation when shrinking, because it
    averages every source pixel (bilinear skips most of them and moved probabilities by up to 0.35).

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
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return gray[:, :, np.newaxis]


def read_inputs(sources: Sequence[ImageSource], height: int = 224, width: int = 224) -> Iterator[Gray | ImageError]:
    """Decode and preprocess many images on all cores, in order, a few at a time.

    Yields
    ------
    (height, width, 1) uint8, or the `ImageError` of an image that cannot be read.
    """

    def read(source: ImageSource) -> Gray | ImageError:
        try:
            return preprocess(read_image(source), height, width)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(cpu_count()) as pool:
        for chunk in chunks(sources, 64):  # bounds the memory that decoded images take
            yield from pool.map(read, chunk)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut `items` into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

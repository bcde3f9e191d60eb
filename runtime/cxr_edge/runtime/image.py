"""bytes | path | array | DICOM -> uint8 grayscale, or a typed error.

The only decoder of the project: training, verification and the device all read images here, so that they cannot differ.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.signatures import is_dicom

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | npt.NDArray[np.generic]"
Gray: TypeAlias = npt.NDArray[np.uint8]

#: More pixels than this are refused before one is decoded.
MAX_PIXELS = 100_000_000
#: Shorter sides than this carry no radiograph (pixels).
MIN_SIDE = 32


def read_image(source: ImageSource) -> Gray:
    """Read one radiograph as 8-bit grayscale.

    Parameters
    ----------
    source
        Path of an image file, its bytes, or an array: (H, W), (H, W, 1) or (H, W, 3|4) RGB, of uint8 in [0, 255], of
        another integer type or of float, which are stretched from their own range to [0, 255].

    Returns
    -------
    (H, W) uint8 in [0, 255]; EXIF orientation is applied, 16-bit images and DICOM are stretched to 8 bits.

    Raises
    ------
    ImageError
        If the source is missing, empty, truncated, not an image, or too small to be a radiograph.
    MissingDecoderError
        If the source is DICOM and what decodes it is not installed; an ImageError, too.
    """
    if isinstance(source, np.ndarray):
        return _checked(_from_array(source), "array")
    if isinstance(source, bytes):
        return _checked(_decode(source, "bytes"), "bytes")
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return _checked(_decode(data, str(path)), str(path))


def _decode(data: bytes, name: str) -> Gray:
    if not data:
        raise ImageError(f"{name}: empty (0 bytes); copy the file again")
    if is_dicom(data):
        from cxr_edge.runtime.dicom import decode_dicom

        return decode_dicom(data, name, MAX_PIXELS)
    try:
        # ANYDEPTH keeps 16-bit PNG and TIFF, which plain GRAYSCALE would cut to their upper 8 bits.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({error.err or 'OpenCV refused it'})") from error
    if pixels is None:
        raise ImageError(f"{name}: not an image, or cut short; expected JPEG, PNG, TIFF, BMP, WebP or DICOM")
    return _to_uint8(pixels, name)


def _from_array(array: npt.NDArray[np.generic]) -> Gray:
    if array.ndim == 3 and array.shape[2] in (3, 4):
        # The alpha channel is dropped before weighting: cv2 wants uint8, uint16 or float32 here.
        rgb = np.ascontiguousarray(array[:, :, :3])
        if rgb.dtype not in (np.uint8, np.uint16, np.float32):
            rgb = rgb.astype(np.float32)
        array = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 or array.size == 0:
        raise ImageError(f"array of shape {array.shape}; expected (H, W), (H, W, 1) or (H, W, 3) RGB")
    return _to_uint8(array, "array")


def _to_uint8(pixels: npt.NDArray[np.generic], name: str) -> Gray:
    return np.ascontiguousarray(pixels) if pixels.dtype == np.uint8 else stretch(pixels, name)


def stretch(values: npt.NDArray[np.generic], name: str) -> Gray:
    """Map [min, max] of the image to [0, 255]: detectors fill 10 to 14 of 16 bits, so the type's range says nothing."""
    scaled = values.astype(np.float32)
    low, high = float(scaled.min()), float(scaled.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name}: pixels that are not finite numbers")
    scaled -= low
    scaled *= 255.0 / max(high - low, 1e-12)
    return np.rint(scaled).astype(np.uint8)


def _checked(gray: Gray, name: str) -> Gray:
    if min(gray.shape) < MIN_SIDE:
        raise ImageError(f"{name}: {gray.shape[1]}×{gray.shape[0]} pixels; a radiograph has at least {MIN_SIDE} a side")
    return gray

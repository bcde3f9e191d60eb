"""Decoding of image files, bytes and arrays to 8-bit grayscale.

This is the only decoder of the project. Training, verification and the device all use it, so they cannot differ.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.gray import Gray, stretch
from cxr_edge.runtime.imaging.header import max_memory
from cxr_edge.runtime.imaging.jpeg import decode_jpeg
from cxr_edge.runtime.imaging.signatures import sniff

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | npt.NDArray[np.generic]"

#: Minimum side of a radiograph (pixels).
MIN_SIDE = 32


def read_image(
    source: ImageSource, min_height: int = 0, min_width: int = 0, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Gray:
    """Read one radiograph as 8-bit grayscale.

    Parameters
    ----------
    source
        Path of an image file, its bytes, or an array of shape (H, W), (H, W, 1) or (H, W, 3|4) RGB. Arrays are uint8 in
        [0, 255], or of another integer or floating-point type; the range of the latter is stretched to [0, 255].
    min_height, min_width
        Required sides. A JPEG is decoded at 1/2, 1/4 or 1/8 size if both sides stay at least this long; 0 means full
        size. Other sources are always read at full size.
    max_pixels
        Files with more pixels are refused before they are decoded.
    name
        Name of the source in errors; by default its path, or what it is.

    Returns
    -------
    (H, W) uint8 in [0, 255]; EXIF orientation is applied, 16-bit images and DICOM are stretched to 8 bits.

    Raises
    ------
    ImageError
        If the source is missing, empty, corrupt, truncated, not an image, too large, or too small.
    MissingDecoderError
        If the decoder of the format is not installed. It is also an ImageError.
    """
    content, default = in_memory(source, max_pixels)
    name = name or default
    gray = (
        _from_array(content)
        if isinstance(content, np.ndarray)
        else _decode(content, name, min_height, min_width, max_pixels)
    )
    return _checked(gray, name)


def in_memory(source: ImageSource, max_pixels: int = MAX_PIXELS) -> tuple[bytes | npt.NDArray[np.generic], str]:
    """The content of a source, and its name in errors; the file of a path is read.

    Raises
    ------
    ImageError
        If the file cannot be read, or is larger than a radiograph of `max_pixels` can be.
    """
    if isinstance(source, np.ndarray):
        return source, "array"
    if isinstance(source, bytes):
        return source, "bytes"
    return _read_file(Path(source), max_memory(max_pixels)), str(source)


def _read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            # `read` allocates all that it is asked for, so it is asked for the size of the file and one byte more.
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)
            if len(data) > size:  # a pipe or a device, which has no size, or a file that grew
                data += file.read(limit + 1 - len(data))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read ({reason}); check the path") from error
    if len(data) > limit:
        raise ImageError(f"{path}: file of more than {limit:,} bytes; expected one radiograph. Check the path")
    return data


def _decode(data: bytes, name: str, min_height: int, min_width: int, max_pixels: int) -> Gray:
    if not data:
        raise ImageError(f"{name}: empty (0 bytes); copy the file again")
    kind = sniff(data)
    if kind == "DICOM":
        from cxr_edge.runtime.imaging.dicom import decode_dicom

        return decode_dicom(data, name, max_pixels)
    if kind == "JPEG":
        return decode_jpeg(data, name, min_height, min_width, max_pixels)
    from cxr_edge.runtime.imaging.formats import check_file  # 4 ms, which a JPEG need not wait for

    return _decode_opencv(data, name, check_file(data, name, max_pixels).format)


def _decode_opencv(data: bytes, name: str, kind: str) -> Gray:
    try:
        # ANYDEPTH keeps 16 bits of PNG and TIFF, which GRAYSCALE alone would reduce to the upper 8 bits.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        reason = error.err or "OpenCV refused it"
        raise ImageError(f"{name}: {kind} file cannot be decoded ({reason}); copy the file again") from error
    if pixels is None:
        raise ImageError(
            f"{name}: {kind} file is corrupt, cut short, or of a kind that OpenCV does not read; copy the file again, "
            "or save it as PNG"
        )
    return _to_uint8(pixels, name)


def _from_array(array: npt.NDArray[np.generic]) -> Gray:
    if array.dtype.kind not in "buif":
        raise ImageError(f"array of {array.dtype}; expected integers or real numbers")
    if array.ndim == 3 and array.shape[2] in (3, 4):
        # cv2 accepts uint8, uint16 or float32 here; the alpha channel is ignored.
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


def _checked(gray: Gray, name: str) -> Gray:
    if min(gray.shape) < MIN_SIDE:
        raise ImageError(
            f"{name}: {gray.shape[1]}×{gray.shape[0]} pixels; expected at least {MIN_SIDE} a side of a radiograph"
        )
    return gray

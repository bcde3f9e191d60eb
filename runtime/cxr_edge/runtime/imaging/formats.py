"""Header checks of the formats that OpenCV decodes: PNG, TIFF, BMP and WebP.

No pixel is decoded here. JPEG has its own module, `jpeg`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.header import Header, least_bytes
from cxr_edge.runtime.imaging.signatures import ACCEPTED, sniff
from cxr_edge.runtime.imaging.tiff import DEFLATE_RATIO, check_sums, read_tiff

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BMP_RATIO = {0: 1, 1: 128, 2: 128, 3: 1}  # run-length codes: 2 bytes for at most 255 pixels


def check_file(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Refuse a PNG, TIFF, BMP or WebP file that OpenCV must not decode.

    Parameters
    ----------
    data
        The whole file.
    name
        Name of the file in errors.
    max_pixels
        Files with more pixels are refused.

    Returns
    -------
    The claims of the header.

    Raises
    ------
    ImageError
        If the file has none of these formats, is truncated, contradicts itself, has a wrong checksum, is of an
        unsupported kind, or claims too much (see `Header.check`).
    """
    kind = sniff(data)
    if kind not in _READERS:
        start = data[:8].hex(" ")
        raise ImageError(f"{name}: not an image; found a file that starts with {start}, expected {ACCEPTED}")
    try:
        header = _READERS[kind](data)
        header.check(name, max_pixels)
        if kind == "TIFF":
            check_sums(data)
    except ImageError:
        raise
    except (struct.error, IndexError, OverflowError) as error:
        raise ImageError(f"{name}: {kind} file is cut short; copy the file again") from error
    except ValueError as error:
        raise ImageError(f"{name}: {kind} file {error}") from error
    return header


def _read_png(data: bytes) -> Header:
    width = height = depth = colour = stored = 0
    for index, (kind, content) in enumerate(_png_chunks(data)):
        if (index == 0) != (kind == b"IHDR"):
            raise ValueError(f"with chunk {kind!r} in place {index}; expected one IHDR, first. Copy the file again")
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", content)
        elif kind == b"IDAT":
            stored += len(content)
        elif kind == b"acTL":
            raise ValueError("is animated; expected one picture. Save one frame of it")
    if colour not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise ValueError(f"has colour type {colour} with {depth} bits; expected one that PNG defines")
    decoded = height * (1 + (width * _PNG_CHANNELS[colour] * depth + 7) // 8)
    # OpenCV decodes into one buffer and copies it into another; 16 bits are then stretched to 8.
    memory = height * width * (5 if depth == 16 else 2)
    return Header("PNG", height, width, stored, least_bytes(decoded, DEFLATE_RATIO), memory)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the chunks up to IEND and check the CRC of each, which OpenCV does not enforce."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        (size,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        (crc,) = struct.unpack_from(">I", data, at + 8 + size)
        if zlib.crc32(view[at + 4 : at + 8 + size]) != crc:
            raise ValueError(f"is corrupt: the checksum of chunk {kind!r} at byte {at} is wrong; copy the file again")
        yield kind, view[at + 8 : at + 8 + size]
        at += 12 + size


def _read_bmp(data: bytes) -> Header:
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:  # the header of OS/2
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression not in _BMP_RATIO or bits not in (1, 4, 8, 16, 24, 32) or planes != 1:
        raise ValueError(f"has {planes} planes of {bits} bits in compression {compression}; save it as PNG")
    height = abs(height)  # negative: rows are stored from top to bottom
    decoded = height * ((width * bits + 31) // 32 * 4)
    least = least_bytes(decoded, _BMP_RATIO[compression]) if compression else decoded
    return Header("BMP", height, width, len(data) - offset, least, height * width)


def _read_webp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise ValueError(f"is cut short: {len(data):,} bytes, expected {size + 8:,}; copy the file again")
    canvas = None
    for kind, content in _webp_chunks(data, size + 8):
        if kind == b"VP8X":
            if content[0] & 2:
                raise ValueError("is animated; expected one picture. Save one frame of it")
            canvas = _uint24(content, 4) + 1, _uint24(content, 7) + 1
        elif kind in (b"VP8 ", b"VP8L"):
            width, height = _webp_sides(kind, content)
            if canvas not in (None, (width, height)):
                raise ValueError(f"has a picture of {width}×{height} on a canvas of {canvas}; copy the file again")
            # A blank image needs no bytes at all, so only `MAX_RATIO` limits it. OpenCV decodes it in colour.
            pixels = height * width
            return Header("WebP", height, width, len(content), least_bytes(pixels, max(pixels, 1)), 8 * pixels)
    raise ValueError("holds no picture; copy the file again")


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > end:
            raise ValueError(f"is corrupt: chunk {kind!r} at byte {at} reaches past the end; copy the file again")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _webp_sides(kind: bytes, content: bytes) -> tuple[int, int]:
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", content)
        if signature != 0x2F:
            raise ValueError("is corrupt: the picture does not start with its signature; copy the file again")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    start, width, height = struct.unpack_from("<3x3sHH", content)
    if start != b"\x9d\x01\x2a":
        raise ValueError("is corrupt: the picture does not start with its signature; copy the file again")
    return width & 0x3FFF, height & 0x3FFF


def _uint24(content: bytes, at: int) -> int:
    return content[at] | content[at + 1] << 8 | content[at + 2] << 16


_READERS = {"PNG": _read_png, "TIFF": read_tiff, "BMP": _read_bmp, "WebP": _read_webp}

"""What a TIFF or BigTIFF file claims of its first picture (Adobe, "TIFF Revision 6.0", 1992)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.header import Header, least_bytes

#: Deflate reaches at most 1032 to 1 (https://zlib.net/zlib_tech.html).
DEFLATE_RATIO = 1032
#: Compressions that are read, with the most that each can reach. LZW: a code of 12 bits for at most 3,839 bytes;
#: PackBits: 2 bytes for at most 128. JPEG inside TIFF is not read, because OpenCV does not report corrupt data there.
_RATIO = {1: 1, 5: 2560, 8: DEFLATE_RATIO, 32946: DEFLATE_RATIO, 32773: 64}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR = (
    256, 257, 258, 259, 273, 277, 278, 279, 284,
)  # fmt: skip
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_WANTED = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS}
)
_DTYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_ARRAYS = frozenset({_OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS})
Tags = Mapping[int, npt.NDArray[np.uint64]]


def read_tiff(data: bytes) -> Header:
    """Read the header of a TIFF file.

    Raises
    ------
    ValueError
        If the file contradicts itself or is of a kind that is not read; the text goes after "TIFF file".
    struct.error
        If the file is cut short.
    """
    tags = _read_tags(data)
    height, width, bits = _one(tags, _HEIGHT), _one(tags, _WIDTH), _one(tags, _BITS, 1)
    samples, compression = _one(tags, _SAMPLES, 1), _one(tags, _COMPRESSION, 1)
    if compression not in _RATIO:
        raise ValueError(f"has compression {compression}; expected none, LZW, Deflate or PackBits. Save it as PNG")
    if not 1 <= bits <= 64 or not 1 <= samples <= 16:
        raise ValueError(f"has {samples} samples of {bits} bits; expected 8 or 16 bits. Save it as PNG")
    planes = samples if _one(tags, _PLANAR, 1) == 2 else 1
    piece_height, piece_width, offsets, counts = _pieces(tags, height, width)
    pieces = planes * -(-height // piece_height) * -(-width // piece_width)
    if len(offsets) < pieces or len(counts) < pieces:
        raise ValueError(f"has {min(len(offsets), len(counts))} strips or tiles; expected {pieces}. Copy it again")
    size = len(data)
    if (offsets > size).any() or (counts > size - np.minimum(offsets, size)).any():
        raise ValueError(f"has strips or tiles that lie past its end of {size:,} bytes; copy the file again")
    piece_bytes = piece_height * -(-piece_width * bits * (samples // planes) // 8)
    # Strips at the bottom are cut to the picture; tiles are whole.
    decoded = pieces * piece_bytes if _TILE_WIDTH in tags else planes * height * (piece_bytes // piece_height)
    least = least_bytes(decoded, _RATIO[compression]) if compression != 1 else decoded
    # OpenCV decodes strip by strip or tile by tile, at up to 4 bytes a pixel; what has more than 8 bits is stretched.
    memory = height * width * (2 if bits <= 8 else 1 + bits // 4) + max(piece_bytes, 4 * piece_height * piece_width)
    return Header("TIFF", height, width, min(int(counts.sum()), size), least, memory)


def _pieces(tags: Tags, height: int, width: int) -> tuple[int, int, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Height and width of a strip or tile in pixels, and where they lie: offsets and bytes."""
    if _TILE_WIDTH in tags:
        sides = _one(tags, _TILE_HEIGHT), _one(tags, _TILE_WIDTH)
        names = _TILE_OFFSETS, _TILE_COUNTS
    else:
        sides = min(_one(tags, _ROWS, 2**32 - 1), height), width
        names = _OFFSETS, _COUNTS
    if min(sides) < 1:
        raise ValueError(f"has strips or tiles of {sides[1]}×{sides[0]} pixels; expected at least 1×1. Copy it again")
    for name in names:
        _one(tags, name)  # raises if it is absent
    return *sides, tags[names[0]], tags[names[1]]


def _read_tags(data: bytes) -> Tags:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2 if order == "<" else 3] == 43
    at: int = struct.unpack_from(order + ("8xQ" if big else "4xI"), data)[0]
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    if entries > 4096:
        raise ValueError(f"has {entries} tags; expected at most 4096. The file is corrupt: copy it again")
    tags: dict[int, npt.NDArray[np.uint64]] = {}
    for entry in range(at, at + entries * (20 if big else 12), 20 if big else 12):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
        if tag not in _WANTED:
            continue
        if tag in tags or kind not in _DTYPES or count < 1:
            raise ValueError(f"has tag {tag} twice or malformed (type {kind}, {count} values); copy the file again")
        dtype = np.dtype(order + _DTYPES[kind])
        inside = count * dtype.itemsize <= (8 if big else 4)
        value = entry + (12 if big else 8)
        start = value if inside else struct.unpack_from(order + ("Q" if big else "I"), data, value)[0]
        if start + count * dtype.itemsize > len(data):
            raise ValueError(f"has tag {tag} with values past its end of {len(data):,} bytes; copy the file again")
        tags[tag] = np.frombuffer(data, dtype, count, start).astype(np.uint64)
    return tags


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    if tag in tags:
        return int(tags[tag][0])
    if default is None:
        raise ValueError(f"lacks tag {tag}; the file is corrupt: copy it again")
    return default

"""Header checks of TIFF and BigTIFF files (Adobe, "TIFF Revision 6.0", 1992)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.imaging.header import Header, least_bytes

#: Maximum ratio of Deflate (https://zlib.net/zlib_tech.html).
DEFLATE_RATIO = 1032
#: Supported compressions and the maximum ratio of each. LZW: a code of 12 bits for at most 3,839 bytes; PackBits: 2
#: bytes for at most 128. JPEG inside TIFF is not supported, because OpenCV does not report corrupt data there.
_RATIO = {1: 1, 5: 2560, 8: DEFLATE_RATIO, 32946: DEFLATE_RATIO, 32773: 64}
_DEFLATE = frozenset({8, 32946})
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR = (
    256, 257, 258, 259, 273, 277, 278, 279, 284,
)  # fmt: skip
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_WANTED = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS}
)
_INFLATED = 2**20  # bytes at a time; limits the memory for a strip
_DTYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
Values: TypeAlias = "npt.NDArray[np.uint64]"
Tags: TypeAlias = "Mapping[int, Values]"


@dataclass(frozen=True)
class _Layout:
    """Layout of the pixels in strips or tiles ("pieces")."""

    height: int
    width: int
    bits: int
    samples: int
    compression: int
    planes: int  # 1, or `samples` if each sample has its own pieces
    tiled: bool
    piece_height: int
    piece_width: int
    offsets: Values
    counts: Values  # bytes

    @property
    def pieces(self) -> int:
        return self.planes * -(-self.height // self.piece_height) * -(-self.width // self.piece_width)

    @property
    def row_bytes(self) -> int:
        return -(-self.piece_width * self.bits * (self.samples // self.planes) // 8)

    @property
    def decoded(self) -> int:
        """Number of bytes of all pixels; strips end with the image, tiles are complete."""
        if self.tiled:
            return self.pieces * self.piece_height * self.row_bytes
        return self.planes * self.height * self.row_bytes


def read_tiff(data: bytes) -> Header:
    """Read the header of a TIFF file.

    Raises
    ------
    ValueError
        If the file contradicts itself or is of an unsupported kind. The text continues "TIFF file".
    struct.error
        If the file is truncated.
    """
    layout, size = _read_layout(data), len(data)
    if layout.compression not in _RATIO:
        found = layout.compression
        raise ValueError(f"has compression {found}; expected none, LZW, Deflate or PackBits. Save it as PNG")
    if not 1 <= layout.bits <= 64 or not 1 <= layout.samples <= 16:
        raise ValueError(f"has {layout.samples} samples of {layout.bits} bits; expected 8 or 16 bits. Save it as PNG")
    if min(layout.piece_height, layout.piece_width) < 1:
        sides = f"{layout.piece_width}×{layout.piece_height}"
        raise ValueError(f"has strips or tiles of {sides} pixels; expected at least 1×1. Copy it again")
    found = min(len(layout.offsets), len(layout.counts))
    if found < layout.pieces:
        raise ValueError(f"has {found} strips or tiles; expected {layout.pieces}. Copy it again")
    if (layout.offsets > size).any() or (layout.counts > size - np.minimum(layout.offsets, size)).any():
        raise ValueError(f"has strips or tiles that lie past its end of {size:,} bytes; copy the file again")
    ratio = _RATIO[layout.compression]
    least = least_bytes(layout.decoded, ratio) if ratio > 1 else layout.decoded
    # OpenCV decodes piece by piece, with up to 4 bytes per pixel. Pixels of more than 8 bits are then stretched to 8.
    piece = layout.piece_height * max(layout.row_bytes, 4 * layout.piece_width)
    memory = layout.height * layout.width * (2 if layout.bits <= 8 else 1 + layout.bits // 4) + piece
    return Header("TIFF", layout.height, layout.width, min(int(layout.counts.sum()), size), least, memory)


def check_sums(data: bytes) -> None:
    """Verify the checksum of each strip or tile compressed with Deflate; other compressions have none.

    OpenCV reads corrupt strips of 8 bits as if they were intact. Call this only after `Header.check`.

    Raises
    ------
    ValueError
        If a checksum is wrong. The text continues "TIFF file".
    """
    layout = _read_layout(data)
    if layout.compression not in _DEFLATE:
        return
    most = layout.piece_height * layout.row_bytes
    for index, (offset, count) in enumerate(zip(layout.offsets.tolist(), layout.counts.tolist(), strict=False)):
        if index < layout.pieces and not _inflates(memoryview(data)[offset : offset + count], most):
            raise ValueError(f"is corrupt: strip or tile {index} does not hold what it should; copy the file again")


def _inflates(content: memoryview, most: int) -> bool:
    """Whether this is intact Deflate data of at most `most` bytes; it is inflated in small parts."""
    inflating, rest = zlib.decompressobj(), bytes(content)
    try:
        while rest and most >= 0:
            most -= len(inflating.decompress(rest, _INFLATED))
            rest = inflating.unconsumed_tail
    except zlib.error:
        return False
    return inflating.eof and most >= 0


def _read_layout(data: bytes) -> _Layout:
    tags = _read_tags(data)
    height, width, samples = _one(tags, _HEIGHT), _one(tags, _WIDTH), _one(tags, _SAMPLES, 1)
    tiled = _TILE_WIDTH in tags
    if tiled:
        sides = _one(tags, _TILE_HEIGHT), _one(tags, _TILE_WIDTH)
    else:
        sides = min(_one(tags, _ROWS, 2**32 - 1), height), width
    places = [_some(tags, tag) for tag in ((_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_OFFSETS, _COUNTS))]
    planes = samples if _one(tags, _PLANAR, 1) == 2 else 1
    bits, compression = _one(tags, _BITS, 1), _one(tags, _COMPRESSION, 1)
    return _Layout(height, width, bits, samples, compression, planes, tiled, *sides, *places)


def _read_tags(data: bytes) -> Tags:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2 if order == "<" else 3] == 43
    at: int = struct.unpack_from(order + ("8xQ" if big else "4xI"), data)[0]
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    if entries > 4096:
        raise ValueError(f"has {entries} tags; expected at most 4096. The file is corrupt: copy it again")
    tags: dict[int, Values] = {}
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


def _some(tags: Tags, tag: int) -> Values:
    if tag not in tags:
        raise ValueError(f"lacks tag {tag}; the file is corrupt: copy it again")
    return tags[tag]


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    return default if default is not None and tag not in tags else int(_some(tags, tag)[0])

"""Sound files of every format, from which the fuzzer makes broken ones. A new format needs a line in `SEEDS`."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

ORIGINALS = Path(__file__).parents[3] / "shared" / "data" / "originals"


def radiograph(height: int = 520, width: int = 620) -> np.ndarray:
    """A drawn chest: (height, width) uint8, smooth, with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    lungs = sum(np.exp(-((x - side) ** 2 / 0.06 + y**2 / 0.3)) for side in (-0.4, 0.4))
    return np.clip(190 - 130 * lungs - 60 * x**2 + rng.normal(0, 6, x.shape), 0, 255).astype(np.uint8)


GRAY = radiograph()
COLOUR = np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1]])
DEEP = GRAY.astype(np.uint16) * 16 + 7


def encode(suffix: str, pixels: np.ndarray = GRAY, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done, suffix
    return data.tobytes()


def jpeg() -> list[bytes]:
    plain = encode(".jpg")
    return [
        plain,
        encode(".jpg", COLOUR),
        encode(".jpg", GRAY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encode(".jpg", COLOUR, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encode(".jpg", GRAY, cv2.IMWRITE_JPEG_RST_INTERVAL, 8, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        encode(".jpg", radiograph(1000, 1200)),
        simplejpeg.encode_jpeg(np.ascontiguousarray(np.dstack([COLOUR, GRAY])), 90, "CMYK", "444"),
        *(plain[:2] + exif_segment(orientation, order) + plain[2:] for orientation in (3, 6) for order in "<>"),
    ]


def exif_segment(orientation: int, order: str = "<") -> bytes:
    """An APP1 segment that tells an orientation; `order` as in `struct`."""
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


def png() -> list[bytes]:
    return [
        encode(".png"),
        encode(".png", DEEP),
        encode(".png", COLOUR),
        encode(".png", np.dstack([COLOUR, GRAY])),
        encode(".png", GRAY, cv2.IMWRITE_PNG_BILEVEL, 1),
        png_file(np.zeros((900, 900), np.uint8)),  # compressed as far as deflate can
    ]


def png_file(pixels: np.ndarray) -> bytes:
    """A PNG with one IDAT chunk, written without libpng."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[::-1], 8, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff() -> list[bytes]:
    none, lzw, deflate, packbits = 1, 5, 8, 32773
    small = np.ascontiguousarray(GRAY[:300, :300])
    files = [encode(".tiff", small, cv2.IMWRITE_TIFF_COMPRESSION, c) for c in (none, lzw, deflate, packbits)]
    files += [encode(".tiff", p, cv2.IMWRITE_TIFF_COMPRESSION, lzw) for p in (DEEP, COLOUR, GRAY.astype(np.float32))]
    return files + [tiff_file(small, order, big) for order in "<>" for big in (False, True)]


def tiff_file(pixels: np.ndarray, order: str = "<", big: bool = False) -> bytes:
    """An uncompressed TIFF or BigTIFF in one strip, written without libtiff; `order` as in `struct`."""
    tags = [(256, pixels.shape[1]), (257, pixels.shape[0]), (258, 8), (259, 1), (262, 1), (273, 0), (277, 1)]
    tags += [(278, pixels.shape[0]), (279, pixels.size)]
    start = b"II" if order == "<" else b"MM"
    start += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    start += struct.pack(order + ("Q" if big else "H"), len(tags))
    entry = order + ("HHQQ" if big else "HHII")
    end = len(start) + len(tags) * struct.calcsize(entry) + (8 if big else 4)
    for tag, value in tags:
        start += struct.pack(entry, tag, 16 if big else 4, 1, end if tag == 273 else value)
    return start.ljust(end, b"\0") + pixels.tobytes()


def bmp() -> list[bytes]:
    return [encode(".bmp", p[:300, :300]) for p in (GRAY, COLOUR, np.dstack([COLOUR, GRAY]))]


def webp() -> list[bytes]:
    lossy = encode(".webp", GRAY, cv2.IMWRITE_WEBP_QUALITY, 80)
    return [lossy, encode(".webp", GRAY, cv2.IMWRITE_WEBP_QUALITY, 101), webp_canvas(lossy, *GRAY.shape)]


def webp_canvas(simple: bytes, height: int, width: int) -> bytes:
    """The extended form of a simple WebP file."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    chunks = b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides + simple[12:]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def originals() -> list[bytes]:
    """Some real radiographs where they are there."""
    return [path.read_bytes() for path in sorted(ORIGINALS.glob("*/*.jpeg"))[::10]]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "JPEG": jpeg,
    "PNG": png,
    "TIFF": tiff,
    "BMP": bmp,
    "WebP": webp,
    "originals": originals,
}

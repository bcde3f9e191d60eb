"""Ways to break a file, each `(file, another file, random numbers) -> broken file`."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

#: Sides and counts at which decoders break.
NUMBERS = (0, 1, 2, 31, 223, 4096, 9999, 16383, 20000, 32767, 60000, 65500, 65535, 2**20, 2**24, 2**31 - 1, 2**32 - 1)


def flip_bits(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    broken = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(broken), rng.integers(1, 17))
    broken[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return broken.tobytes()


def flip_header(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return flip_bits(data[:256], other, rng) + data[256:]


def random_middle(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(0, len(data)))
    noise = rng.bytes(int(rng.integers(1, 80)))
    return data[:at] + noise + data[at + len(noise) :]


def truncate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def delete(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:start] + data[end:]


def repeat(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))] + other[int(rng.integers(0, len(other))) :]


def append(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2000)))


def edit_numbers(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Write a number of `NUMBERS` over 2 or 4 bytes of the header, in either byte order."""
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        form = str(rng.choice(["<H", ">H", "<I", ">I"]))
        number = NUMBERS[rng.integers(len(NUMBERS))] & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
        at = int(rng.integers(0, min(200, max(1, len(data) - 4))))
        broken[at : at + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(broken)


def edit_sides(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Write numbers of `NUMBERS` over the sides, wherever this format has them."""
    width, height = (NUMBERS[i] for i in rng.integers(0, len(NUMBERS), 2))
    broken = bytearray(data)
    if data[:4] == b"\x89PNG":
        broken[16:24] = struct.pack(">II", width, height)
    elif data[:2] == b"\xff\xd8":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = data.find(marker)
            if at > 0:
                broken[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif data[:2] == b"BM":
        broken[18:26] = struct.pack("<II", width, height)
    elif data[:4] == b"RIFF":
        broken[26:30] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif data[:2] in (b"II", b"MM"):
        return _edit_tiff(broken, {256: width, 257: height}, rng)
    return bytes(broken)


def _edit_tiff(data: bytearray, sides: dict[int, int], rng: np.random.Generator) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    for tag, value in sides.items():
        for kind in (3, 4, 16):
            at = data.find(struct.pack(order + "HH", tag, kind))
            if at > 0 and rng.random() < 0.8:
                place = at + (12 if kind == 16 else 8)
                data[place : place + 4] = struct.pack(order + "I", value)
    return bytes(data)


def repeat_scans(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Repeat the last scan of a JPEG many times: the bomb of progressive files."""
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    if data[:2] != b"\xff\xd8" or not 0 < start < end:
        return flip_bits(data, other, rng)
    scan = data[start:end]
    return data[:end] + scan * min(int(rng.integers(1, 5000)), 2_000_000 // len(scan)) + data[end:]


def repair(data: bytes) -> bytes:
    """Make checksums and lengths right again, so that what was broken inside gets past them: PNG and WebP."""
    if data[:4] == b"RIFF" and len(data) > 12:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    repaired, at = bytearray(data), 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(repaired[at + 4 : end]))
        at = end + 4
    return bytes(repaired)


Mutation = Callable[[bytes, bytes, np.random.Generator], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_header,
    random_middle,
    truncate,
    delete,
    repeat,
    splice,
    append,
    edit_numbers,
    edit_sides,
    repeat_scans,
)


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Break a file in one to three ways; sometimes repair its checksums afterwards."""
    for index in rng.integers(0, len(MUTATIONS), 1 + rng.choice(3, p=(0.7, 0.2, 0.1))):
        if data:
            data = MUTATIONS[index](data, other, rng)
    return repair(data) if rng.random() < 0.5 else data

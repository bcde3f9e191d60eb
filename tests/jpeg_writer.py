"""JPEG files that GDCM cannot write: lossy with 12 bits, and lossless with each predictor. One component, one scan."""

from struct import pack

import numpy as np

_ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))


def lossless(pixels, bits, predictor=1):
    """JPEG Lossless (process 14), ITU T.81 annex H."""
    values = pixels.astype(int)
    left, up = np.roll(values, 1, 1), np.roll(values, 1, 0)
    corner = np.roll(up, 1, 1)
    predicted = {
        1: left,
        2: up,
        3: corner,
        4: left + up - corner,
        5: left + ((up - corner) >> 1),
        6: up + ((left - corner) >> 1),
        7: (left + up) >> 1,
    }[predictor].copy()
    predicted[0, :], predicted[:, 0] = left[0, :], up[:, 0]
    predicted[0, 0] = 1 << (bits - 1)
    writer = _Writer()
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel():
        size = int(abs(difference)).bit_length()
        writer.symbol(size)
        writer.magnitude(difference, size)
    return _file(0xC3, pixels.shape, bits, writer, b"", (predictor, 0, 0))


def lossy(pixels, bits, step=4):
    """Sequential DCT (baseline with 8 bits, extended with 12), each coefficient quantised by `step`."""
    rows, columns = (side + -side % 8 for side in pixels.shape)
    padded = np.pad(pixels.astype(float), ((0, rows - pixels.shape[0]), (0, columns - pixels.shape[1])), "edge")
    blocks = (padded - (1 << (bits - 1))).reshape(rows // 8, 8, columns // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    u, x = np.mgrid[:8, :8]
    basis = np.where(u == 0, np.sqrt(1 / 8), 0.5) * np.cos((2 * x + 1) * u * np.pi / 16)
    quantised = np.rint(basis @ blocks @ basis.T / step).astype(int).reshape(-1, 64)[:, _ZIGZAG]
    writer, last = _Writer(), 0
    for block in quantised:
        size = int(abs(block[0] - last)).bit_length()
        writer.symbol(size)
        writer.magnitude(block[0] - last, size)
        last, zeros = block[0], 0
        for value in block[1:]:
            if value == 0:
                zeros += 1
                continue
            for _ in range(zeros // 16):
                writer.symbol(0xF0)
            size = int(abs(value)).bit_length()
            writer.symbol(zeros % 16 << 4 | size)
            writer.magnitude(value, size)
            zeros = 0
        if zeros:
            writer.symbol(0)
    table = _segment(0xDB, b"\0" + bytes([step] * 64))
    return _file(0xC0 if bits == 8 else 0xC1, pixels.shape, bits, writer, table, (0, 63, 0))


class _Writer:
    """Bits of the entropy-coded segment. Symbols below 17 have codes of 5 bits, the others of 13."""

    def __init__(self):
        self.bits = []

    def symbol(self, symbol):
        self.bits.append(f"{symbol:05b}" if symbol < 17 else f"{(17 << 8) + symbol - 17:013b}")

    def magnitude(self, value, size):
        if size and size < 16:
            self.bits.append(f"{value if value > 0 else value + (1 << size) - 1:0{size}b}")

    def stuffed(self):
        bits = "".join(self.bits)
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def _segment(marker, content):
    return pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _huffman(kind, short, long):
    lengths = [0] * 16
    lengths[4], lengths[12] = short, long
    return _segment(0xC4, bytes([kind, *lengths, *range(short + long)]))


def _file(frame, shape, bits, writer, tables, scan):
    sizes = 17 if frame == 0xC3 else 16  # of differences; libjpeg refuses tables with more
    huffman = _huffman(0x00, sizes, 0) + _huffman(0x10, 17, 239)
    return (
        b"\xff\xd8"
        + tables
        + _segment(frame, pack(">BHHB", bits, *shape, 1) + b"\x01\x11\0")
        + huffman
        + _segment(0xDA, b"\x01\x01\0" + bytes(scan))
        + writer.stuffed()
        + b"\xff\xd9"
    )

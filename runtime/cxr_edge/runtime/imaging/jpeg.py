"""Strict decoding of JPEG files to grayscale with libjpeg-turbo: its warnings are errors here.

OpenCV uses the same library but ignores its warnings, so it reads corrupt files as if they were intact. `simplejpeg`
can also decode at a reduced scale.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.header import Header

_PROGRESSIVE = 0xC2
#: Huffman-coded frames of 8×8 transforms (ITU-T T.81, table B.1): baseline, extended sequential, progressive.
_DECODED = frozenset({0xC0, 0xC1, _PROGRESSIVE})
#: Other frames. libjpeg-turbo can decode lossless frames of 8 bits, but it ignores the scale and writes past the end of
#: the smaller image. Arithmetic coding has no minimum size and is hardly used.
_REFUSED = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical progressive",
    0xC7: "hierarchical lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded progressive",
    0xCB: "arithmetic-coded lossless",
    0xCD: "arithmetic-coded hierarchical",
    0xCE: "arithmetic-coded hierarchical progressive",
    0xCF: "arithmetic-coded hierarchical lossless",
}
#: Maximum number of 8×8 blocks visited by all scans of a file. A visit takes about 10 ns even in an empty scan, so a
#: small file with many empty scans would take minutes. Files written by libjpeg have 6 to 10 scans.
MAX_BLOCK_VISITS = 16_000_000
_SCAN = 0xDA
_SCALES = (8, 4, 2)


@dataclass(frozen=True)
class _Frame:
    """The frame header and the EXIF orientation in [1, 8], which precede the first scan."""

    marker: int
    precision: int
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]  # of each component: horizontal, vertical
    scans: int = 1
    orientation: int = 1

    @property
    def blocks(self) -> int:
        """Number of 8×8 blocks of all components."""
        across, down = (max(factor) for factor in zip(*self.sampling, strict=True))
        return sum(-(-self.width * h // (8 * across)) * -(-self.height * v // (8 * down)) for h, v in self.sampling)

    def header(self, stored: int, scale: int) -> Header:
        """The claims of the file if it is decoded at 1/`scale`."""
        # Each block takes at least one bit in the first DC scan, and a second one for its AC coefficients. In
        # progressive files these have their own scans, where one code can skip 32,767 blocks (T.81, F.1.2 and G.1.2).
        bits = 1 if self.marker == _PROGRESSIVE else 2
        channels = 5 if len(self.sampling) == 4 else 1  # CMYK is decoded completely, then converted
        buffered = self.marker == _PROGRESSIVE or self.scans > 1
        memory = channels * -(-self.height // scale) * -(-self.width // scale) + buffered * self.blocks * 64 * 2
        return Header("JPEG", self.height, self.width, stored, -(-self.blocks * bits // 8), memory)


def decode_jpeg(
    data: bytes, name: str, min_height: int = 0, min_width: int = 0, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG file to grayscale and apply its orientation.

    Parameters
    ----------
    data
        The whole file. Bytes after the end of the image are ignored.
    name
        Name of the file in errors.
    min_height, min_width
        Required sides of the upright image. It is decoded at 1/2, 1/4 or 1/8 size if both sides stay at least this
        long; 0 means full size. libjpeg offers other eighths too, but these three have fast transforms and are closer
        to averages of pixels: on 70 radiographs with sides of at least 448 they differ by 0.16 instead of 0.34 grey
        levels after area averaging, in the same time.
    max_pixels
        Files with more pixels are refused.

    Returns
    -------
    (H, W) uint8 in [0, 255]. Colour is converted to luminance, and the EXIF orientation is applied.

    Raises
    ------
    ImageError
        If the file is corrupt, truncated, too large, or of a kind that libjpeg does not decode to 8 bits, or if
        simplejpeg is not installed.
    """
    try:
        frame = _read_frame(data)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(f"{name}: JPEG header is corrupt or cut short ({error}); copy the file again") from error
    if frame.marker not in _DECODED or frame.precision != 8:
        raise ImageError(
            f"{name}: {_REFUSED.get(frame.marker, 'lossy')} JPEG of {frame.precision} bits; expected a baseline or "
            "progressive JPEG of 8 bits. Save it as PNG, which keeps up to 16 bits"
        )
    if frame.orientation > 4:  # these orientations swap the sides
        min_height, min_width = min_width, min_height
    scale = _scale(frame.height, frame.width, min_height, min_width)
    frame.header(len(data), scale).check(name, max_pixels)
    if frame.scans * frame.blocks > MAX_BLOCK_VISITS:
        raise ImageError(
            f"{name}: JPEG of {frame.width}×{frame.height} pixels in {frame.scans} scans; expected at most "
            f"{MAX_BLOCK_VISITS // frame.blocks}. Save it as a baseline JPEG"
        )
    return _upright(_decode(data, name, frame, scale), frame.orientation)


def _decode(data: bytes, name: str, frame: _Frame, scale: int) -> npt.NDArray[np.uint8]:
    try:
        import simplejpeg
    except ModuleNotFoundError as error:
        raise ImageError(f"{name}: JPEG cannot be read without simplejpeg; run: pip install simplejpeg") from error
    try:
        # With these sides simplejpeg uses exactly 1/`scale`, because the next smaller size is below them.
        gray = simplejpeg.decode_jpeg(
            data, "GRAY", min_height=-(-frame.height // scale), min_width=-(-frame.width // scale), strict=True
        )[:, :, 0]
    except (ValueError, RuntimeError, KeyError) as error:
        if "subsampling" in str(error):
            factors = ", ".join(f"{h}×{v}" for h, v in frame.sampling)
            raise ImageError(f"{name}: JPEG with unusual sampling factors ({factors}); save it as PNG") from error
        raise ImageError(f"{name}: JPEG data is corrupt or cut short ({error}); copy the file again") from error
    if gray.shape != (-(-frame.height // scale), -(-frame.width // scale)):
        raise ImageError(f"{name}: JPEG file is corrupt: its header contradicts itself; copy the file again")
    return gray


def _scale(height: int, width: int, min_height: int, min_width: int) -> int:
    if min_height <= 0 or min_width <= 0:
        return 1
    return next((s for s in _SCALES if -(-height // s) >= min_height and -(-width // s) >= min_width), 1)


def _read_frame(data: bytes) -> _Frame:
    """Read the segments up to the first scan exactly as libjpeg does, or fail; both must see the same frame."""
    frame, orientation = None, 0
    for marker, segment, end in _segments(data):
        if marker in _DECODED or marker in _REFUSED:
            if frame:
                raise ValueError("two frames")
            frame = _parse_frame(marker, segment)
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0") and not orientation:
            orientation = exif_orientation(segment[6:])
        elif marker == _SCAN:
            start, components = end, segment[0]
    if not frame:
        raise ValueError("no frame before the first scan")
    scans = 1
    # A sequential file whose first scan has all components has no other: libjpeg refuses a second one. In the others
    # FF DA is a marker wherever it occurs in the scans, because FF in their data is followed by 00.
    if frame.marker == _PROGRESSIVE or components < len(frame.sampling):
        scans += data.count(b"\xff\xda", start)
    return replace(frame, scans=scans, orientation=orientation or 1)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, content and end of each segment, up to the start of the first scan."""
    at, marker = 2, 0
    while marker != _SCAN:
        while data[at + 1] == 0xFF == data[at]:  # padding
            at += 1
        marker = data[at + 1]
        (size,) = struct.unpack_from(">H", data, at + 2)
        if data[at] != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or size < 2:
            raise ValueError(f"found {data[at : at + 4].hex(' ')} at byte {at}, expected a segment")
        yield marker, data[at + 4 : at + 2 + size], at + 2 + size
        at += 2 + size


def _parse_frame(marker: int, segment: bytes) -> _Frame:
    precision, height, width, components = struct.unpack_from(">BHHB", segment)
    sampling = tuple((segment[7 + 3 * i] >> 4, segment[7 + 3 * i] & 15) for i in range(components))
    if not sampling or min(min(factors) for factors in sampling) < 1:
        raise ValueError(f"{components} components of sampling {sampling}")
    return _Frame(marker, precision, height, width, sampling)


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block (a small TIFF file), in [1, 8]; 1 (upright) if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "4xI", exif)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, value = struct.unpack_from(order + "H6xH", exif, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short
        pass
    return 1


def _upright(gray: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    if orientation > 4:
        gray = cv2.transpose(gray)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return gray if flip is None else cv2.flip(gray, flip)

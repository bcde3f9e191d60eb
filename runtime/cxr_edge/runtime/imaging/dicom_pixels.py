"""Decoding of the pixel data of DICOM files to stored codes.

Uncompressed data is copied, 8-bit JPEG is decoded by simplejpeg (strict), and everything else by GDCM. The header of
each codestream is first compared with the DICOM header, so that no decoder allocates what a damaged stream claims.

Calls from several threads are safe: each call has its own decoder. GDCM's bindings hold the interpreter lock, so their
part of the calls runs sequentially.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from struct import unpack_from
from types import ModuleType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.imaging.dicom_file import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    DicomFile,
)

Codes: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

#: Name and encoding of each supported transfer syntax.
SYNTAXES = {
    IMPLICIT_LITTLE: ("Implicit VR Little Endian", "native"),
    EXPLICIT_LITTLE: ("Explicit VR Little Endian", "native"),
    DEFLATED: ("Deflated Explicit VR Little Endian", "native"),
    EXPLICIT_BIG: ("Explicit VR Big Endian", "native"),
    "1.2.840.10008.1.2.5": ("RLE Lossless", "rle"),
    "1.2.840.10008.1.2.4.50": ("JPEG Baseline", "jpeg"),
    "1.2.840.10008.1.2.4.51": ("JPEG Extended", "jpeg"),
    "1.2.840.10008.1.2.4.57": ("JPEG Lossless", "jpeg"),
    "1.2.840.10008.1.2.4.70": ("JPEG Lossless SV1", "jpeg"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS Lossless", "jpeg-ls"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS Near-Lossless", "jpeg-ls"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 Lossless", "jpeg2000"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "jpeg2000"),
    "1.2.840.10008.1.2.4.201": ("HTJ2K Lossless", "jpeg2000"),
    "1.2.840.10008.1.2.4.202": ("HTJ2K Lossless RPCL", "jpeg2000"),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", "jpeg2000"),
}
#: JPEG 2000 allows 65,535 tiles, and OpenJPEG needs kilobytes for each. A radiograph has at most a few hundred.
MAX_TILES = 1024
#: No radiograph has more pixels per byte than this. Images up to the second number are not checked.
MAX_PIXELS_PER_BYTE, PLAUSIBLE_PIXELS = 256, 1_000_000
# Start-of-frame markers: baseline, extended and progressive; lossless; JPEG-LS.
_LOSSY_FRAMES, _LOSSLESS_FRAME, _LS_FRAME = (0xC0, 0xC1, 0xC2), 0xC3, 0xF7
_FRAME_LENGTH = 11  # of one component
_SCAN = 0xDA
# Huffman and quantisation tables, restart interval, JPEG-LS parameters; application data and comments.
_TABLES, _APPLICATION = frozenset({0xC4, 0xDB, 0xDD, 0xF8}), frozenset({*range(0xE0, 0xF0), 0xFE})
# Inside a scan, a marker that is neither a stuffed byte nor a restart.
_MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """Layout of the pixels according to the DICOM header."""

    rows: int
    columns: int
    bits_allocated: int  # 8 or 16
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def size(self) -> int:
        """Size of the uncompressed pixels in bytes."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True)
class Stream:
    """A codestream and the facts of its own header."""

    data: bytes
    rows: int
    columns: int
    components: int
    bits: int
    frame: int = 0  # the start-of-frame marker of JPEG and JPEG-LS


def read_codes(file: DicomFile, layout: Layout) -> tuple[Codes, int]:
    """Decode the pixels of a file.

    Returns
    -------
    (rows, columns) codes and their number of bits. For signed pixels a code is the two's complement of its value.

    Raises
    ------
    ValueError
        If the pixel data is damaged or does not match the header.
    ModuleNotFoundError
        If GDCM is needed but not installed.
    """
    kind = SYNTAXES[file.syntax][1]
    _check_plausible(len(file.deflated or file.body), layout)
    if kind == "native":
        return _read_native(file, layout)
    offsets, *fragments = file.fragments() or [b""]
    if len(offsets) > 4:
        raise ValueError(f"{len(offsets) // 4} frames; expected one")
    data = b"".join(fragments)
    if kind == "rle":
        _check_rle(data, layout)
        codes = _gdcm_decode("RLECodec", data, layout, layout.bits_allocated, layout.bits_stored)
        return _unpacked(codes, layout)
    stream = _read_siz(data) if kind == "jpeg2000" else _read_frame(data, kind)
    _check_stream(stream, layout)
    codes = _decode(stream, layout, kind)
    bits = min(stream.bits, layout.bits_stored) if layout.signed else stream.bits
    return codes & codes.dtype.type((1 << bits) - 1), bits


def _check_plausible(size: int, layout: Layout) -> None:
    """Refuse a small file that claims many pixels, because some decoders would allocate all of them."""
    pixels = layout.rows * layout.columns
    if pixels > max(PLAUSIBLE_PIXELS, size * MAX_PIXELS_PER_BYTE):
        raise ValueError(f"{size} bytes cannot hold a radiograph of {layout.columns}×{layout.rows} pixels")


def _read_native(file: DicomFile, layout: Layout) -> tuple[Codes, int]:
    padded = layout.size + layout.size % 2  # DICOM values have an even length
    if file.length not in (layout.size, padded):
        raise ValueError(
            f"{file.length} bytes of pixel data; expected {layout.size} "
            f"({layout.columns}×{layout.rows} of {layout.bits_allocated} bits)"
        )
    data = file.native(file.length)
    if len(data) < layout.size:
        raise ValueError(f"pixel data end after {len(data)} of {layout.size} bytes")
    if file.header.order == ">" and file.pixel_vr == b"OW" and layout.bits_allocated == 8:
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()  # bytes stored as words are swapped in pairs
    codes = np.frombuffer(data, f"{file.header.order}u{layout.bits_allocated // 8}", layout.rows * layout.columns)
    return _unpacked(codes.reshape(layout.rows, layout.columns), layout)


def _unpacked(codes: Codes, layout: Layout) -> tuple[Codes, int]:
    """Extract the stored bits; old files keep overlays in the others."""
    mask = codes.dtype.type((1 << layout.bits_stored) - 1)
    return (codes >> codes.dtype.type(layout.high_bit + 1 - layout.bits_stored)) & mask, layout.bits_stored


def _decode(stream: Stream, layout: Layout, kind: str) -> Codes:
    lossy = stream.frame in _LOSSY_FRAMES
    if lossy and stream.bits == 8:
        from simplejpeg import decode_jpeg

        return decode_jpeg(stream.data, "GRAY", strict=True)[:, :, 0]
    codec = {"jpeg": "JPEGCodec", "jpeg-ls": "JPEGLSCodec", "jpeg2000": "JPEG2000Codec"}[kind]
    if kind == "jpeg":
        _check_scan(stream.data)
    # GDCM selects one of three libjpegs by the allocated bits; the one for 16 bits refuses lossy 12-bit files.
    allocated = stream.bits if lossy else 8 if stream.bits <= 8 else 16
    return _gdcm_decode(codec, stream.data, layout, allocated, stream.bits)


def _check_stream(stream: Stream, layout: Layout) -> None:
    if (stream.rows, stream.columns, stream.components) != (layout.rows, layout.columns, 1):
        raise ValueError(
            f"the compressed image is {stream.columns}×{stream.rows} with {stream.components} components; "
            f"the DICOM header says {layout.columns}×{layout.rows} with 1"
        )
    if not 2 <= stream.bits <= layout.bits_allocated:
        raise ValueError(
            f"the compressed image has {stream.bits} bits a pixel; the DICOM header allocates {layout.bits_allocated}"
        )


def _read_frame(data: bytes, kind: str) -> Stream:
    """Read the marker segments of a JPEG or JPEG-LS codestream up to its scan, without application segments.

    GDCM ends the process if libjpeg warns of them, for example of bytes between them or of an unknown JFIF version.
    """
    frames = (_LS_FRAME,) if kind == "jpeg-ls" else (*_LOSSY_FRAMES, _LOSSLESS_FRAME)
    kept, stream, at = bytearray(data[:2]), None, 2
    while kept[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker, length = unpack_from(">BH", data, at + 1)
        if marker == _SCAN and stream:
            return replace(stream, data=bytes(kept) + data[at:])
        if marker in frames and length == _FRAME_LENGTH and not stream:
            bits, rows, columns, components = unpack_from(">BHHB", data, at + 4)
            stream = Stream(b"", rows, columns, components, bits, marker)
        elif marker not in _TABLES | _APPLICATION or length < 2:
            break
        if marker not in _APPLICATION:
            kept += data[at : at + 2 + length]
        at += 2 + length
    raise ValueError(f"the compressed image is not {kind.upper()}, or its header is damaged")


def _check_scan(data: bytes) -> None:
    """Check that the scan ends with the end-of-image marker, which GDCM does not check."""
    marker = _MARKER_IN_SCAN.search(data, data.index(b"\xff\xda") + 2)
    if not marker or marker[1] != b"\xd9" or data[marker.end() :].strip(b"\0"):
        raise ValueError("the compressed image is damaged or cut short")


def _read_siz(data: bytes) -> Stream:
    """Read the size segment at the start of a JPEG 2000 codestream."""
    if data[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("the compressed image is not a JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height, _, _, components, bits = unpack_from(">8IHB", data, 8)
    if not tile_width or not tile_height or ceil(right / tile_width) * ceil(bottom / tile_height) > MAX_TILES:
        raise ValueError(
            f"{right}×{bottom} pixels in tiles of {tile_width}×{tile_height}; expected 1 to {MAX_TILES} tiles"
        )
    return Stream(data, bottom - top, right - left, components, (bits & 0x7F) + 1)


def _check_rle(data: bytes, layout: Layout) -> None:
    """Check the header of RLE data: one segment for each byte of a pixel, in order and inside the data."""
    count, *offsets = unpack_from("<16I", data)
    if count != layout.bits_allocated // 8:
        raise ValueError(f"{count} RLE segments; expected {layout.bits_allocated // 8}")
    bounds = [64, *offsets[1:count], len(data)]
    if offsets[0] != 64 or bounds != sorted(bounds):
        raise ValueError("RLE segments that lie outside the pixel data")


def _gdcm_decode(codec_name: str, data: bytes, layout: Layout, allocated: int, bits: int) -> Codes:
    gdcm = _gdcm()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    packed, unpacked = (gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)) for _ in range(2))
    packed.SetValue(fragments.__ref__())
    codec = getattr(gdcm, codec_name)()
    codec.SetNumberOfDimensions(2)
    codec.SetDimensions((layout.columns, layout.rows, 1))
    codec.SetPlanarConfiguration(0)
    codec.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    codec.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, int(layout.signed)))
    dtype = np.dtype("u1" if allocated <= 8 else "<u2")
    size = layout.rows * layout.columns * dtype.itemsize
    if hasattr(codec, "SetBufferLength"):
        codec.SetBufferLength(size)
    value = unpacked.GetByteValue() if codec.Decode(packed, unpacked) else None
    if value is None:
        raise ValueError("the compressed image is damaged")
    # The bindings return bytes as text; this converts them back.
    decoded = value.GetBuffer().encode("utf-8", "surrogateescape")
    if len(decoded) < size:
        raise ValueError(f"the compressed image ends after {len(decoded)} of {size} bytes")
    return np.frombuffer(decoded, dtype, layout.rows * layout.columns).reshape(layout.rows, layout.columns)


@cache
def _gdcm() -> ModuleType:
    """Import GDCM once and switch off its messages on standard error."""
    import gdcm

    for switch in ("DebugOff", "WarningOff", "ErrorOff"):
        getattr(gdcm.Trace, switch)()
    return gdcm

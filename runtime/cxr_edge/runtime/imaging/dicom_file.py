"""Reading of the header of a DICOM file and of the position of its pixel data.

pydicom reads the elements. Only the required ones are kept, as bytes, and are converted here, because the conversion of
pydicom reports harmless mistakes in a header through the process-wide warnings of Python.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from struct import unpack, unpack_from
from typing import Any

IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG = (
    f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2")
)
UNDEFINED_LENGTH = 0xFFFFFFFF
#: Maximum size of an inflated header (bytes); private elements can have several megabytes.
MAX_DEFLATED_HEADER = 16 << 20
_CHARACTER_SET = 0x00080005
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


class Tag(IntEnum):
    """The elements that are read, with their DICOM keywords."""

    TransferSyntaxUID = 0x00020010
    StudyDate = 0x00080020
    Modality = 0x00080060
    BodyPartExamined = 0x00180015
    ViewPosition = 0x00185101
    StudyInstanceUID = 0x0020000D
    SamplesPerPixel = 0x00280002
    PhotometricInterpretation = 0x00280004
    NumberOfFrames = 0x00280008
    Rows = 0x00280010
    Columns = 0x00280011
    BitsAllocated = 0x00280100
    BitsStored = 0x00280101
    HighBit = 0x00280102
    PixelRepresentation = 0x00280103
    PixelPaddingValue = 0x00280120
    PixelPaddingRangeLimit = 0x00280121
    WindowCenter = 0x00281050
    WindowWidth = 0x00281051
    RescaleIntercept = 0x00281052
    RescaleSlope = 0x00281053
    VOILUTFunction = 0x00281056
    ModalityLUTSequence = 0x00283000
    LUTDescriptor = 0x00283002
    LUTData = 0x00283006
    VOILUTSequence = 0x00283010
    PixelData = 0x7FE00010


@dataclass(frozen=True)
class Header:
    """Elements of a data set, converted on access.

    Parameters
    ----------
    elements
        Elements of pydicom by tag: raw elements and sequences.
    order
        "<" for little-endian numbers, ">" for big-endian ones.
    """

    elements: dict[int, Any]
    order: str

    def raw(self, tag: Tag) -> bytes:
        """Bytes of an element; empty if it is absent."""
        return (self.elements[tag].value or b"") if tag in self.elements else b""

    def text(self, tag: Tag) -> str:
        """First value of a text element in upper case; empty if it is absent."""
        return self._texts(tag)[0].upper()

    def decimals(self, tag: Tag) -> list[float]:
        """All values of a decimal string; empty if it is absent. Raises ValueError if a value is not a number."""
        return [float(text) for text in self._texts(tag) if text]

    def integers(self, tag: Tag, signed: bool = False) -> list[int]:
        """All values of a 16-bit integer element; empty if it is absent."""
        raw = self.raw(tag)
        return list(unpack(f"{self.order}{len(raw) // 2}{'h' if signed else 'H'}", raw[: len(raw) // 2 * 2]))

    def integer(self, tag: Tag, signed: bool = False) -> int | None:
        """First value of a 16-bit integer element; None if it is absent."""
        values = self.integers(tag, signed)
        return values[0] if values else None

    def first_item(self, tag: Tag) -> Header | None:
        """First item of a sequence; None if it is absent or empty."""
        from pydicom.dataset import Dataset

        if tag not in self.elements:
            return None
        items = Dataset({tag: self.elements[tag]})[tag].value
        return Header({tag: items[0].get_item(tag) for tag in Tag if tag in items[0]}, self.order) if items else None

    def _texts(self, tag: Tag) -> list[str]:
        return [part.strip(" \0") for part in self.raw(tag).decode("latin-1").split("\\")]


@dataclass(frozen=True)
class DicomFile:
    """The header of a file and the position of its pixel data.

    Parameters
    ----------
    syntax
        UID of the transfer syntax.
    body
        Bytes of the data set: the file, or the start of the inflated data set.
    deflated
        The compressed data set; empty if it is not deflated.
    pixel_vr
        Type of the pixel data element, such as b"OW"; meaningless in implicit VR.
    offset, length
        Start of the pixel data in the inflated body, and its length in bytes or `UNDEFINED_LENGTH`.
    """

    syntax: str
    header: Header
    body: bytes
    deflated: bytes
    pixel_vr: bytes
    offset: int
    length: int

    def native(self, size: int) -> bytes:
        """First `size` bytes of uncompressed pixel data; fewer if the file is truncated."""
        end = self.offset + size
        body = _inflate(self.deflated, end) if self.deflated and end > len(self.body) else self.body
        return body[self.offset : end]

    def fragments(self) -> list[bytes]:
        """Fragments of compressed pixel data; the first one is the table of frame offsets.

        Raises
        ------
        ValueError
            If they violate the DICOM standard or are truncated.
        """
        if self.length != UNDEFINED_LENGTH:
            raise ValueError(f"compressed pixel data of fixed length {self.length}; expected fragments")
        fragments: list[bytes] = []
        at = self.offset
        while True:
            head = self.body[at : at + 8]
            if head[:4] == _SEQUENCE_END:
                return fragments
            length = unpack("<I", head[4:])[0] if len(head) == 8 else 0
            at += 8
            if head[:4] != _ITEM or at + length > len(self.body):
                raise ValueError("fragments of the pixel data are damaged or cut short")
            fragments.append(self.body[at : at + length])
            at += length


def read_file(data: bytes) -> DicomFile:
    """Read the header of a DICOM file with or without preamble; no pixel is decoded.

    Raises
    ------
    ModuleNotFoundError
        If pydicom is not installed.
    Exception
        Any exception of pydicom for a damaged header; ValueError if there is no pixel data.
    """
    stream = BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = Header({e.tag: e for e in _elements(stream, False, "<", lambda tag: tag >> 16 != 2)}, "<")
    syntax = meta.text(Tag.TransferSyntaxUID) or _guess_syntax(data[stream.tell() :][:8])
    deflated = b""
    if syntax == DEFLATED:
        deflated = data[stream.tell() :]
        stream = BytesIO(_inflate(deflated, MAX_DEFLATED_HEADER))
    start = stream.tell()
    body = stream.getvalue()
    # The content decides, not the claim: some writers name one encoding and use the other.
    implicit = not _has_vr(body[start : start + 8])
    order = ">" if syntax == EXPLICIT_BIG else "<"
    elements = {e.tag: e for e in _elements(stream, implicit, order, lambda tag: tag == Tag.PixelData)}
    return DicomFile(syntax, Header(elements, order), body, deflated, *_pixel_data(body, stream.tell(), order))


def _elements(stream: BytesIO, implicit: bool, order: str, ends: Callable[[int], bool]) -> Iterator[Any]:
    """Yield the elements of `Tag` up to the first for which `ends` is true; the stream stops at its start."""
    from pydicom.filereader import data_element_generator

    little = order == "<"

    def stop(tag: int, vr: str | None, length: int) -> bool:
        return tag == _CHARACTER_SET or ends(tag)

    while True:
        yield from data_element_generator(stream, implicit, little, stop, specific_tags=list(Tag))
        # Skip the character set: pydicom warns of unusual ones, and no element that is read here depends on it.
        at = stream.tell()
        head = stream.read(8)
        if len(head) < 8 or unpack(f"{order}HH", head[:4]) != (_CHARACTER_SET >> 16, _CHARACTER_SET & 0xFFFF):
            stream.seek(at)
            return
        (length,) = unpack(f"{order}H", head[6:]) if _has_vr(head) else unpack(f"{order}I", head[4:])
        stream.seek(length, 1)


def _has_vr(head: bytes) -> bool:
    """Whether the first 8 bytes of an element name its type (explicit VR); a length never looks like two letters."""
    return all(0x41 <= letter <= 0x5A for letter in head[4:6])


def _guess_syntax(head: bytes) -> str:
    """Guess the uncompressed syntax from the first element, for a file that does not name its syntax."""
    if not _has_vr(head):
        return IMPLICIT_LITTLE
    return EXPLICIT_LITTLE if head[:1] != b"\0" else EXPLICIT_BIG


def _pixel_data(body: bytes, at: int, order: str) -> tuple[bytes, int, int]:
    """Type, offset and length of the pixel data element at `at`."""
    head = body[at : at + 12]
    if len(head) < 8 or unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise ValueError("it contains no pixel data")
    size = 12 if head[4:6] in (b"OB", b"OW", b"UN") else 8
    (length,) = unpack_from(f"{order}I", head, size - 4)
    return head[4:6], at + size, length


def _inflate(packed: bytes, limit: int) -> bytes:
    """Inflate at most `limit` bytes, so that a small file cannot fill the memory."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit)

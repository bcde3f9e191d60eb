"""Recognition of file formats by their first bytes."""

from __future__ import annotations

from struct import unpack_from

#: Number of bytes that suffice: a DICOM preamble and its magic word.
HEAD = 132
#: Formats that `read_image` reads, for messages.
ACCEPTED = "JPEG, PNG, TIFF, BMP, WebP or DICOM"

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
_DICOM_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)


def sniff(head: bytes) -> str | None:
    """The format of a file by its first `HEAD` bytes: `JPEG`, `PNG`, …, `DICOM`; None if not one of `ACCEPTED`."""
    if head[128:132] == b"DICM":  # first: the 128 bytes before it may be a TIFF header (DICOM PS3.10, 7.1)
        return "DICOM"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if _is_bmp(head):
        return "BMP"
    return "DICOM" if starts_data_set(head) else None


def starts_data_set(head: bytes) -> bool:
    """Whether `head` starts like a DICOM data set: with a low element of group 0002 or 0008.

    There is no magic word, so three conditions must hold: the group, the element number, and a known type (explicit VR)
    or a plausible length (implicit VR).
    """
    if len(head) < 12:
        return False
    order = "<" if head[0] else ">"
    group, element = unpack_from(f"{order}HH", head)
    if group not in (0x0002, 0x0008) or element > 0x0018:
        return False
    if head[4:6] in _DICOM_VRS:
        return True
    (length,) = unpack_from("<I", head, 4)
    lengths = (4,) if element == 0 else range(2, 65, 2)  # element 0 is the length of the group
    return order == "<" and group == 0x0008 and length in lengths


def _is_bmp(head: bytes) -> bool:
    """Check the magic word and the size of the second header, because many texts start with the two letters."""
    return len(head) >= 18 and head[:2] == b"BM" and unpack_from("<I", head, 14)[0] in _BMP_HEADER_SIZES

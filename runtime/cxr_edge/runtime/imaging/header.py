"""Checks of image headers before any pixel is allocated.

A header cannot be trusted: a file of 50 kB can claim 60,000 × 60,000 pixels, and a decoder that believes it needs
gigabytes and seconds before it fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError

#: Maximum memory of a decoder, in bytes per pixel of the limit: 250 MB by default.
MAX_BYTES_PER_PIXEL = 2.5
#: Decoded images larger than this (bytes) must not exceed the compression ratio `MAX_RATIO`.
LARGE = 16 * 2**20
#: Lossless compression of radiographs reaches 2 to 10. A large image beyond this ratio is blank or malicious.
MAX_RATIO = 100


@dataclass(frozen=True)
class Header:
    """The claims of an image header.

    Attributes
    ----------
    format
        `JPEG`, `PNG`, `TIFF`, `BMP` or `WebP`.
    height, width
        Stored size in pixels, before the EXIF orientation is applied.
    stored
        Number of bytes of the file that contain pixels.
    least
        Minimum number of bytes for this number of pixels in this compression.
    memory
        Approximate memory of the decoder in bytes.
    """

    format: str
    height: int
    width: int
    stored: int
    least: int
    memory: int

    def check(self, name: str, max_pixels: int = MAX_PIXELS) -> None:
        """Refuse images that are too large, or larger than the file can contain.

        Raises
        ------
        ImageError
            If the image has no pixels or more than `max_pixels`, if the file is too short to contain them, or if its
            decoder would need more than `MAX_BYTES_PER_PIXEL` bytes for each pixel of the limit.
        """
        claim = f"{name}: {self.format} of {self.width}×{self.height} pixels"
        limit = max_memory(max_pixels)
        if self.height <= 0 or self.width <= 0:
            raise ImageError(f"{claim}; expected at least 1×1. The file is corrupt: copy it again")
        if self.height * self.width > max_pixels:
            raise ImageError(f"{claim}; expected at most {max_pixels:,} pixels. Shrink it, or raise the limit")
        if self.least > self.stored:
            raise ImageError(
                f"{claim} in {self.stored:,} bytes; expected at least {self.least:,} bytes for this number of pixels. "
                "The file is corrupt, cut short or blank: copy it again"
            )
        if self.memory > limit:
            raise ImageError(
                f"{claim} takes {self.memory / 1e6:,.0f} MB to decode; expected at most {limit / 1e6:,.0f} MB. "
                "Save it as 8-bit grayscale, or raise the limit of pixels"
            )


def max_memory(max_pixels: int) -> int:
    """Maximum number of bytes of an image file, and of the memory of its decoder."""
    return int(MAX_BYTES_PER_PIXEL * max_pixels)


def least_bytes(decoded: int, ratio: int) -> int:
    """Minimum number of bytes for `decoded` bytes of pixels in a compression with at most this `ratio`."""
    return -(-decoded // (min(ratio, MAX_RATIO) if decoded > LARGE else ratio))

"""What an image file claims of its picture, and which claims are refused before a pixel is allocated.

A header is only a claim: a file of 50 kB can claim 60,000 × 60,000 pixels, and a decoder that believes it takes
gigabytes and seconds before it fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import ImageError

#: Memory that a decoder may take, in bytes for each pixel of the limit: 250 MB by default.
MAX_BYTES_PER_PIXEL = 2.5
#: Decoded pictures of more bytes than this must not be compressed further than `MAX_RATIO`.
LARGE = 16 * 2**20
#: Without loss, radiographs are compressed 2 to 10 times. A large picture beyond this is blank, or made to do harm.
MAX_RATIO = 100


@dataclass(frozen=True)
class Header:
    """What a file claims of its picture.

    Attributes
    ----------
    format
        `JPEG`, `PNG`, `TIFF`, `BMP` or `WebP`.
    height, width
        In pixels, as stored: before the EXIF orientation is applied.
    stored
        Bytes of the file that hold pixels.
    least
        The fewest bytes that can hold so many pixels in this compression.
    memory
        Bytes that the decoder takes, about.
    """

    format: str
    height: int
    width: int
    stored: int
    least: int
    memory: int

    def check(self, name: str, max_pixels: int = MAX_PIXELS) -> None:
        """Refuse claims that are too large, or larger than the file can hold.

        Raises
        ------
        ImageError
            If the picture has no pixels or more than `max_pixels`, if the file is too short to hold them, or if its
            decoder would take more than `MAX_BYTES_PER_PIXEL` bytes for each pixel of the limit.
        """
        claim = f"{name}: {self.format} of {self.width}×{self.height} pixels"
        limit = max_memory(max_pixels)
        if self.height <= 0 or self.width <= 0:
            raise ImageError(f"{claim}; expected at least 1×1. The file is corrupt: copy it again")
        if self.height * self.width > max_pixels:
            raise ImageError(f"{claim}; expected at most {max_pixels:,} pixels. Shrink it, or raise the limit")
        if self.least > self.stored:
            raise ImageError(
                f"{claim} in {self.stored:,} bytes; expected at least {self.least:,} bytes for so many pixels. "
                "The file is corrupt, cut short or blank: copy it again"
            )
        if self.memory > limit:
            raise ImageError(
                f"{claim} takes {self.memory / 1e6:,.0f} MB to decode; expected at most {limit / 1e6:,.0f} MB. "
                "Save it as 8-bit grayscale, or raise the limit of pixels"
            )


def max_memory(max_pixels: int) -> int:
    """Bytes that reading one picture may take: its file, or its decoder."""
    return int(MAX_BYTES_PER_PIXEL * max_pixels)


def least_bytes(decoded: int, ratio: int) -> int:
    """The fewest bytes for `decoded` bytes of pixels in a compression that reaches `ratio` at most."""
    return -(-decoded // (min(ratio, MAX_RATIO) if decoded > LARGE else ratio))

"""Changes of position and borders."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from cxr_edge.train.fit.augment.change import RandomChange


class RandomAffine(RandomChange):
    """Rotate, shift, zoom, stretch and crop each image in one interpolation; the surroundings become black.

    Successive layers would interpolate several times, and the network would be trained on images that are softer than
    those it is used on.

    Parameters
    ----------
    degrees
        Largest rotation about the centre, either way.
    shift
        Largest translation, either way, as a share of height and width.
    zoom
        Range of magnification, drawn log-uniformly; borders are cropped above 1.
    stretch
        Largest ratio of the magnification of the width to that of the height, either way.
    share
        Probability, in [0, 1], that an image is rotated, shifted, zoomed and stretched; and, independently, that it is
        cropped.
    crop_area
        Smallest area of a crop as a share of the image, drawn uniformly up to 1: random resized crops (Szegedy et al.
        2015). The crop has a random place and aspect ratio (3:4 to 4:3). 1 means no crops.
    """

    def __init__(
        self, degrees: float, shift: float, zoom: tuple[float, float], stretch: float, share: float = 1.0,
        crop_area: float = 1.0, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self._degrees, self._shift, self._zoom, self._stretch = degrees, shift, tuple(zoom), stretch
        self._share, self._crop_area = share, crop_area

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)
        across, along = self._crop(count, width, height)
        (a, b, left), (c, d, top) = self._move(count, width, height)
        none = ops.zeros_like(a)
        # The source of each output pixel: the place in the crop, then the source of that place in the moved image.
        matrix = [
            a * across[0], b * along[0], a * across[1] + b * along[1] + left,
            c * across[0], d * along[0], c * across[1] + d * along[1] + top,
            none, none,
        ]  # fmt: skip
        return ops.image.affine_transform(images, ops.stack(matrix, axis=1), fill_mode="constant", fill_value=0.0)

    def _move(self, count: Any, width: int, height: int) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
        """The matrix that maps output to source pixels, (a, b, left) and (c, d, top); each is (count,)."""
        applied = self._applied(count)

        def draw(low: float, high: float) -> Any:
            return applied * self._draw((count,), low, high)

        angle = draw(-math.radians(self._degrees), math.radians(self._degrees))
        zoom = ops.exp(draw(*map(math.log, self._zoom)))
        stretch = ops.exp(draw(-math.log(self._stretch) / 2, math.log(self._stretch) / 2))
        right, down = draw(-self._shift, self._shift) * width, draw(-self._shift, self._shift) * height
        # Centre -> rotation -> scale -> centre.
        a, b = ops.cos(angle) / (zoom * stretch), -ops.sin(angle) / (zoom * stretch)
        c, d = ops.sin(angle) * stretch / zoom, ops.cos(angle) * stretch / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        return (a, b, x - a * x - b * y + right), (c, d, y - c * x - d * y + down)

    def _crop(self, count: Any, width: int, height: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Scale and start of the crop (pixels), across and along the image; each is (count,)."""
        applied = self._applied(count) if self._crop_area < 1 else ops.zeros((count,))
        area = 1 - applied * self._draw((count,), 0, 1 - self._crop_area)
        aspect = ops.exp(applied * self._draw((count,), math.log(3 / 4) / 2, math.log(4 / 3) / 2))
        shares = ops.minimum(ops.sqrt(area) * aspect, 1), ops.minimum(ops.sqrt(area) / aspect, 1)
        return tuple(
            (share, self._draw((count,)) * (1 - share) * (size - 1))
            for share, size in zip(shares, (width, height), strict=True)
        )  # type: ignore[return-value]

    def _applied(self, count: Any) -> Any:
        """1 for the images to change, 0 for the others: (count,)."""
        return ops.cast(self._draw((count,)) < self._share, "float32")


class RandomFrame(RandomChange):
    """Cover a strip of random width at each of the four sides with one random gray level: another collimation.

    Nothing of a mask remains under it.

    Side markers, collimation and film edges differ by class in most collections. A network that cannot rely on them
    must look at the lungs. This is random erasing (Zhong et al. 2020) limited to the border.

    Parameters
    ----------
    widest
        Largest width of a strip, as a share of height or width, drawn uniformly from 0.
    """

    def __init__(self, widest: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._widest = widest

    def _change(self, images: Any) -> Any:
        count, height, width, _ = ops.shape(images)

        def inside(size: int) -> Any:
            place = (ops.arange(size, dtype="float32") + 0.5) / size
            ends = self._draw((2, count, 1), 0, self._widest)
            return ops.logical_and(place >= ends[0], place <= 1 - ends[1])

        kept = ops.logical_and(inside(height)[:, :, None, None], inside(width)[:, None, :, None])
        gray = ops.cast(self._draw((count, 1, 1, 1), 0, 255), images.dtype)
        no_mask = ops.zeros((count, 1, 1, images.shape[-1] - 1), images.dtype)
        return ops.where(kept, images, ops.concatenate([gray, no_mask], axis=-1))

"""Images that are not upright frontal radiographs, made from radiographs or drawn, to fit `novelty` on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.runtime.imaging.gray import Gray

Random = np.random.Generator
Point = tuple[float, float]

# The CT slice. Coordinates and half axes (x, y) are shares of the body's half axes, from its centre; y points to the
# back. Angles are in degrees; those of the ribs are in radians from the horizontal.
CT_MUSCLE, CT_VESSEL, CT_RIB = (0.92, 0.9), (0.012, 0.016), (0.06, 0.025)
CT_LUNG_X, CT_LUNG_TILT = 0.45, 8
CT_RIB_CAGE, CT_RIB_ANGLES, CT_RIB_TILT = (0.86, 0.84), np.linspace(-1.2, 1.2, 6), 60
#: Gray levels above those of other tissue.
CT_HEART_CONTRAST = 15
#: Centre and half axes.
CT_VERTEBRA, CT_SPINAL_CANAL = ((0, 0.55), (0.11, 0.2)), ((0, 0.62), (0.04, 0.07))

# The lateral view. Corners (x, y) are shares of width and height; the patient looks to the left.
LATERAL_BODY = ((0.15, 0), (0.8, 0), (0.92, 0.3), (0.95, 1), (0.08, 1), (0.1, 0.4))
LATERAL_LUNGS = ((0.45, 0.12), (0.62, 0.1), (0.8, 0.35), (0.82, 0.78), (0.55, 0.62), (0.22, 0.72), (0.22, 0.4))
LATERAL_HEART = ((0.24, 0.45), (0.45, 0.42), (0.52, 0.6), (0.4, 0.68), (0.22, 0.7))
#: Heights of the centres of the vertebrae, and of the back ends of the ribs.
LATERAL_VERTEBRAE, LATERAL_RIBS = np.linspace(0.05, 0.95, 11), np.linspace(0.2, 0.75, 7)


def outliers(pixels: Pixels, count: int, seed: int) -> dict[str, Pixels]:
    """Make images of each kind on which the classifier should not decide.

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255]: radiographs, which are inverted and turned.
    count
        Number of images of each kind.

    Returns
    -------
    Kind -> (count, H, W, 1) uint8 in [0, 255].
    """
    random = np.random.default_rng(seed)
    height, width = pixels.shape[1:3]
    made = {
        "inverted": lambda: cv2.bitwise_not(_any(pixels, random)),
        "turned": lambda: np.rot90(_any(pixels, random), int(random.integers(1, 4))),
    } | {name: lambda draw=draw: draw(height, width, random) for name, draw in DRAWN.items()}
    return {
        name: np.stack([cv2.resize(make(), (width, height)) for _ in range(count)])[..., np.newaxis]
        for name, make in made.items()
    }


def photograph(height: int, width: int, random: Random) -> Gray:
    """A random crop of one of scikit-learn's two sample photographs, mirrored in half of the cases."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    gray = cv2.cvtColor(photos[random.integers(len(photos))], cv2.COLOR_RGB2GRAY)
    side = int(random.integers(120, min(gray.shape)))
    y, x = (int(random.integers(0, extent - side)) for extent in gray.shape)
    detail = gray[y : y + side, x : x + side]
    detail = detail[:, ::-1] if random.random() < 0.5 else detail
    return cv2.resize(np.ascontiguousarray(detail), (width, height), interpolation=cv2.INTER_AREA)


def blank(height: int, width: int, random: Random) -> Gray:
    """One gray level, or a ramp in any direction, with little noise or none."""
    angle, span = random.uniform(0, 2 * np.pi), random.choice([0.0, random.uniform(20, 250)])
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    ramp = random.uniform(0, 255) + span * (np.cos(angle) * x + np.sin(angle) * y)
    return _finish(ramp, random.choice([0.0, 2.0]), random)


def noise(height: int, width: int, random: Random) -> Gray:
    """Noise at one scale, from single pixels to clouds."""
    field = cv2.GaussianBlur(random.normal(size=(height, width)), (0, 0), random.uniform(0.3, 30))
    field = (field - field.mean()) / field.std()
    return _finish(random.uniform(60, 190) + random.uniform(20, 80) * field, 0, random)


def document(height: int, width: int, random: Random) -> Gray:
    """Lines of text, dark on light or light on dark."""
    page = np.full((height, width), 240, np.uint8)
    for y in range(int(random.integers(10, 25)), height, int(random.integers(12, 30))):
        letters = "".join(chr(random.integers(65, 123)) for _ in range(40))
        cv2.putText(page, letters, (int(random.integers(2, 30)), y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 20, 1, cv2.LINE_AA)
    return page if random.random() < 0.5 else cv2.bitwise_not(page)


def ct_slice(height: int, width: int, random: Random) -> Gray:
    """An axial slice of a chest: a body in air, two lungs with vessels, ribs, heart, spine."""
    air = random.uniform(0, 20)
    image = np.full((height, width), air, np.float32)
    middle = np.array([width / 2, height / 2]) + random.normal(0, 4, 2)
    half_axes = np.array([width * random.uniform(0.40, 0.49), height * random.uniform(0.28, 0.40)])
    fat, tissue, bone = random.uniform(60, 100), random.uniform(120, 165), random.uniform(210, 255)
    lung = random.uniform(5, 45)

    def ellipse(centre: Point, axes: Point, gray: float, angle: float = 0) -> None:
        """Fill an ellipse; centre and half axes are shares of the body's half axes, the angle is in degrees."""
        place, size = middle + half_axes * centre, 2 * half_axes * axes
        cv2.ellipse(image, (tuple(place.tolist()), tuple(size.tolist()), angle), gray, -1)

    ellipse((0, 0), (1, 1), fat)
    ellipse((0, 0), CT_MUSCLE, tissue)
    for side in (-1, 1):
        lung_axes = (random.uniform(0.3, 0.38), random.uniform(0.6, 0.75))
        ellipse((CT_LUNG_X * side, -0.02), lung_axes, lung, CT_LUNG_TILT * side)
        for _ in range(random.integers(10, 40)):
            place = (CT_LUNG_X * side + random.normal(0, 0.13), random.normal(0, 0.25))
            ellipse(place, CT_VESSEL, random.uniform(lung, tissue))
        for angle in CT_RIB_ANGLES:
            place = (CT_RIB_CAGE[0] * side * np.cos(angle), CT_RIB_CAGE[1] * np.sin(angle))
            ellipse(place, CT_RIB, bone, CT_RIB_TILT * angle * side)
    heart, heart_axes = (random.uniform(0.05, 0.2), -0.25), (random.uniform(0.2, 0.32), random.uniform(0.3, 0.45))
    ellipse(heart, heart_axes, tissue + CT_HEART_CONTRAST)
    ellipse(*CT_VERTEBRA, bone)
    ellipse(*CT_SPINAL_CANAL, tissue)
    return _finish(cv2.GaussianBlur(image, (0, 0), random.uniform(0.6, 1.5)), random.uniform(0, 8), random)


def lateral(height: int, width: int, random: Random) -> Gray:
    """A lateral view: the chest from the side, with lung field, heart, spine at the back, and ribs."""
    air = random.uniform(0, 30)
    image = np.full((height, width), air, np.float32)
    tissue, bone, lung = random.uniform(130, 180), random.uniform(190, 230), random.uniform(40, 90)

    def polygon(corners: Sequence[Point], gray: float) -> None:
        """Fill a polygon; corners are shares of the image, and are moved by some pixels."""
        pixels = np.array(corners) * (width, height) + random.normal(0, 2, (len(corners), 2))
        cv2.fillPoly(image, [np.rint(pixels).astype(np.int32)], gray)

    polygon(LATERAL_BODY, tissue)
    polygon(LATERAL_LUNGS, lung)
    polygon(LATERAL_HEART, tissue)
    for level in LATERAL_VERTEBRAE:
        front = 0.72 + 0.12 * np.sin(2 * level)  # the spine is curved
        back, top, bottom = front + 0.1, level - 0.03, level + 0.03
        polygon([(front, level - 0.035), (back, top), (back, bottom), (front, level + 0.035)], bone)
    for level in LATERAL_RIBS:
        start, end = (int(0.25 * width), int((level + 0.12) * height)), (int(0.75 * width), int(level * height))
        cv2.line(image, start, end, float((bone + lung) / 2), 2, cv2.LINE_AA)
    image = image[:, ::-1] if random.random() < 0.5 else image
    return _finish(cv2.GaussianBlur(image, (0, 0), random.uniform(1.5, 4)), random.uniform(0, 8), random)


DRAWN: dict[str, Callable[[int, int, Random], Gray]] = {
    "photograph": photograph,
    "blank": blank,
    "noise": noise,
    "document": document,
    "CT slice": ct_slice,
    "lateral view": lateral,
}


#: Every kind that `outliers` makes.
KINDS = ("inverted", "turned", *DRAWN)


def _any(pixels: Pixels, random: Random) -> Gray:
    return pixels[random.integers(len(pixels)), :, :, 0]


def _finish(image: npt.NDArray[np.floating], sigma: float, random: Random) -> Gray:
    return np.clip(np.rint(image + random.normal(0, 1, image.shape) * sigma), 0, 255).astype(np.uint8)

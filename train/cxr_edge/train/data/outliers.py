"""Images that are no upright frontal radiograph, made from radiographs or drawn: what `novelty` must tell apart."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.imaging.image import Gray

Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator


def outliers(pixels: Pixels, count: int, seed: int) -> dict[str, Pixels]:
    """Make images of each kind that a classifier of radiographs should not be asked about.

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255]: radiographs, to be inverted and turned.
    count
        Of images of each kind.

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
    """A random detail of scikit-learn's two sample photographs, possibly mirrored."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    gray = cv2.cvtColor(photos[random.integers(len(photos))], cv2.COLOR_RGB2GRAY)
    side = int(random.integers(120, min(gray.shape)))
    y, x = (int(random.integers(0, extent - side)) for extent in gray.shape)
    detail = gray[y : y + side, x : x + side]
    detail = detail[:, ::-1] if random.random() < 0.5 else detail
    return cv2.resize(np.ascontiguousarray(detail), (width, height), interpolation=cv2.INTER_AREA)


def blank(height: int, width: int, random: Random) -> Gray:
    """One grey level, or a ramp in any direction, with little noise or none."""
    angle, span = random.uniform(0, 2 * np.pi), random.choice([0.0, random.uniform(20, 250)])
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    ramp = random.uniform(0, 255) + span * (np.cos(angle) * x + np.sin(angle) * y)
    return _finish(ramp, random.choice([0.0, 2.0]), random)


def noise(height: int, width: int, random: Random) -> Gray:
    """Noise of one scale, from single pixels to clouds."""
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
    """An axial slice of a chest: a body in air, two lungs with vessels, heart, spine, ribs."""
    image = np.full((height, width), random.uniform(0, 20), np.float32)
    middle = np.array([width / 2, height / 2]) + random.normal(0, 4, 2)
    body = np.array([width * random.uniform(0.40, 0.49), height * random.uniform(0.28, 0.40)])

    def ellipse(offset: tuple[float, float], size: tuple[float, float], grey: float, angle: float = 0) -> None:
        centre, axes = middle + body * offset, body * size
        cv2.ellipse(image, (tuple(centre.tolist()), tuple((2 * axes).tolist()), angle), grey, -1)

    fat, tissue, bone = random.uniform(60, 100), random.uniform(120, 165), random.uniform(210, 255)
    lung = random.uniform(5, 45)
    ellipse((0, 0), (1, 1), fat)
    ellipse((0, 0), (0.92, 0.9), tissue)
    for side in (-1, 1):
        ellipse((0.45 * side, -0.02), (random.uniform(0.3, 0.38), random.uniform(0.6, 0.75)), lung, 8 * side)
        for _ in range(random.integers(10, 40)):
            spot = (0.45 * side + random.normal(0, 0.13), random.normal(0, 0.25))
            ellipse(spot, (0.012, 0.016), random.uniform(lung, tissue))
        for angle in np.linspace(-1.2, 1.2, 6):
            ellipse((0.86 * side * np.cos(angle), 0.84 * np.sin(angle)), (0.06, 0.025), bone, 60 * angle * side)
    ellipse((random.uniform(0.05, 0.2), -0.25), (random.uniform(0.2, 0.32), random.uniform(0.3, 0.45)), tissue + 15)
    ellipse((0, 0.55), (0.11, 0.2), bone)
    ellipse((0, 0.62), (0.04, 0.07), tissue)
    return _finish(cv2.GaussianBlur(image, (0, 0), random.uniform(0.6, 1.5)), random.uniform(0, 8), random)


def lateral(height: int, width: int, random: Random) -> Gray:
    """A lateral view: the chest from the side, spine at the back, one lung field behind and before the heart."""
    image = np.full((height, width), random.uniform(0, 30), np.float32)
    tissue, bone, lung = random.uniform(130, 180), random.uniform(190, 230), random.uniform(40, 90)

    def shape(points: list[tuple[float, float]], grey: float) -> None:
        corners = np.array(points) * (width, height) + random.normal(0, 2, (len(points), 2))
        cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], grey)

    shape([(0.15, 0), (0.8, 0), (0.92, 0.3), (0.95, 1), (0.08, 1), (0.1, 0.4)], tissue)
    shape([(0.45, 0.12), (0.62, 0.1), (0.8, 0.35), (0.82, 0.78), (0.55, 0.62), (0.22, 0.72), (0.22, 0.4)], lung)
    shape([(0.24, 0.45), (0.45, 0.42), (0.52, 0.6), (0.4, 0.68), (0.22, 0.7)], tissue)
    for step in np.linspace(0.05, 0.95, 11):
        x = 0.72 + 0.12 * np.sin(step * 2)
        shape([(x, step - 0.035), (x + 0.1, step - 0.03), (x + 0.1, step + 0.03), (x, step + 0.035)], bone)
    for step in np.linspace(0.2, 0.75, 7):
        start, end = (int(0.25 * width), int((step + 0.12) * height)), (int(0.75 * width), int(step * height))
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


def _any(pixels: Pixels, random: Random) -> Gray:
    return pixels[random.integers(len(pixels)), :, :, 0]


def _finish(image: npt.NDArray[np.floating], sigma: float, random: Random) -> Gray:
    return np.clip(np.rint(image + random.normal(0, 1, image.shape) * sigma), 0, 255).astype(np.uint8)

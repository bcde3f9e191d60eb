"""Measurement of the curves. Each point is the quickest of some repeats: other processes only lengthen times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from cxr_edge.benchmarks.graph.peaks import quickest
from cxr_edge.benchmarks.sessions import onnx_session
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.predictor import Predictor, load

IMAGES = (1, 10, 100, 1000, 10_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MEGAPIXELS = (0.05, 0.2, 0.8, 1.5, 3.0, 6.0, 12.0)
INPUTS, ALPHAS = (128, 160, 192, 224, 256, 288, 320), (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
#: Images of one point of the curve over threads.
PER_POINT = 60
REPEATS = 5


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes
    ----------
    name, x_label
        What grows.
    x, ms
        Its values, and milliseconds per image.
    """

    name: str
    x_label: str
    x: tuple[float, ...]
    ms: tuple[float, ...]

    @property
    def words(self) -> str:
        """How far it scales: growth of the time per image over the whole curve, and where most of it happens."""
        first, last = self.ms[0], self.ms[-1]
        steps = [abs(b - a) for a, b in zip(self.ms, self.ms[1:], strict=False)]
        if not steps or max(steps) == 0:
            return f"{self.name}: constant at {first:.2f} ms per image"
        where = steps.index(max(steps))
        return (
            f"{self.name}: {first:.2f} ms per image at {self.x[0]:g}, {last:.2f} at {self.x[-1]:g} "
            f"(×{last / first:.2f}); the largest step is from {self.x[where]:g} to {self.x[where + 1]:g}"
        )


def over_images(predictor: Predictor, images: Sequence[Path], largest: int) -> Curve:
    """Milliseconds per image of `predict_many` over so many images."""
    counts = tuple(count for count in IMAGES if count <= largest)

    def run(count: int) -> Callable[[], None]:
        def go() -> None:
            for _ in predictor.predict_many(islice(cycle(images), count)):
                pass

        return go

    times = [1e3 * quickest(run(count), REPEATS if count <= 100 else 1) / count for count in counts]
    return Curve("images", "number of images", tuple(map(float, counts)), tuple(times))


def over_threads(bundle: Path, engine: str, precision: str, images: Sequence[Path]) -> Curve:
    """Milliseconds per image when so many threads share a predictor whose engine has one thread per call."""
    predictor = load(bundle, engine, precision, threads=1)
    counts = range(1, (os.cpu_count() or 1) + 1)

    def run(count: int) -> Callable[[], None]:
        def go() -> None:
            with ThreadPoolExecutor(count) as pool:
                for _ in pool.map(predictor.predict, islice(cycle(images), PER_POINT)):
                    pass

        return go

    times = [1e3 * quickest(run(count), REPEATS) / PER_POINT for count in counts]
    return Curve("threads", "threads that share a predictor", tuple(map(float, counts)), tuple(times))


def over_batch(predictor: Predictor) -> Curve:
    """Milliseconds per image of the engine alone, by size of the batch."""
    feed = predictor.manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (BATCHES[-1], feed.height, feed.width, 1), np.uint8)
    engine = predictor.engine
    times = [1e3 * quickest(lambda size=size: engine.run(pixels[:size]), REPEATS) / size for size in BATCHES]  # type: ignore[misc]
    return Curve("batch", "images in a batch", tuple(map(float, BATCHES)), tuple(times))


def over_size(predictor: Predictor, image: Path) -> Curve:
    """Milliseconds from file to decision, by megapixels of a JPEG file: one radiograph, resized."""
    gray = read_image(image)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in MEGAPIXELS:
            factor = (1e6 * megapixels / gray.size) ** 0.5
            path = str(Path(folder) / f"{megapixels}.jpeg")
            interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            cv2.imwrite(path, cv2.resize(gray, None, fx=factor, fy=factor, interpolation=interpolation))
            times.append(1e3 * quickest(lambda path=path: predictor.predict(path), REPEATS))  # type: ignore[misc]
    return Curve("original", "megapixels of the original", MEGAPIXELS, tuple(times))


def over_networks(threads: int) -> Iterator[Curve]:
    """Milliseconds of MobileNetV2 with other inputs and widths in ONNX Runtime.

    The weights are random, because times do not depend on them. ImportError without [export].
    """
    by_input = [_network_ms(size, 1.0, threads) for size in INPUTS]
    yield Curve("input", "height and width of the input", tuple(map(float, INPUTS)), tuple(by_input))
    by_alpha = [_network_ms(224, alpha, threads) for alpha in ALPHAS]
    yield Curve("alpha", "width multiplier of the network", ALPHAS, tuple(by_alpha))


def _network_ms(size: int, alpha: float, threads: int) -> float:
    import keras
    import tensorflow as tf
    import tf2onnx

    network = keras.applications.MobileNetV2((size, size, 3), alpha, include_top=False, weights=None)
    signature = [tf.TensorSpec((1, size, size, 3), tf.float32, name="image")]
    run = tf.function(lambda image: network(image, training=False))
    model, _ = tf2onnx.convert.from_function(run, input_signature=signature, opset=17)
    session = onnx_session(model.SerializeToString(), threads)
    image = np.zeros((1, size, size, 3), np.float32)
    keras.utils.clear_session(free_memory=False)
    return 1e3 * quickest(lambda: session.run(None, {"image": image}), 3 * REPEATS)

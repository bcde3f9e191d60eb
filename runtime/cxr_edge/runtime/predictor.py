"""The way of one image: decode -> preprocess -> engine -> Prediction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile, OperatingPoint
from cxr_edge.runtime.choices import BASELINES, MAX_PIXELS, MAX_STEPS, METHODS
from cxr_edge.runtime.engines import Engine, Outputs, open_engine, select
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.errors import BundleError, CxrEdgeWarning, EngineError, ImageError, UsageError
from cxr_edge.runtime.imaging.image import Gray, ImageSource, read_image
from cxr_edge.runtime.imaging.preprocess import chunks, minimum_sides, preprocess, read_inputs

if TYPE_CHECKING:
    from cxr_edge.runtime.explanation.attribution import Attribution, IntegratedGradients

#: Every predictor of this process.
_LIVE: WeakSet[Predictor] = WeakSet()


@dataclass(frozen=True)
class Prediction:
    """What the network says of one radiograph.

    Attributes
    ----------
    label
        `PNEUMONIA` if `probability` ≥ `threshold`, else `NORMAL` (the manifest's classes).
    probability
        Of pneumonia, in [0, 1], after temperature scaling.
    logit
        Before temperature scaling.
    operating_point, threshold
        The rule that decided.
    heatmap
        (7, 7) float32 ≥ 0: Grad-CAM; each cell's positive contribution to the logit.
    novelty
        Distance of the image's features from the training set.
    in_distribution
        Whether that is as small as of 99 % of held-out radiographs; if not, the decision means nothing.
    timings_ms
        Milliseconds of decode, preprocess and inference; in a batch, of the batch divided by its images.
    """

    label: str
    probability: float
    logit: float
    operating_point: str
    threshold: float
    heatmap: FloatArray
    novelty: float
    in_distribution: bool
    timings_ms: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The object of a JSON line."""
        return {
            "label": self.label,
            "probability": self.probability,
            "logit": self.logit,
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "novelty": self.novelty,
            "in_distribution": self.in_distribution,
            "heatmap": [[round(float(v), 5) for v in row] for row in self.heatmap],
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
        }


@dataclass(frozen=True)
class Explanation:
    """A prediction and its picture: (H, W, 3) uint8 RGB, the heatmap laid over the radiograph, with its scale.

    `attribution` is there if integrated gradients were asked for.
    """

    prediction: Prediction
    picture: npt.NDArray[np.uint8]
    attribution: Attribution | None = None


class Predictor:
    """A model file in its engine, with an operating point; made by `load`.

    Any number of threads may use one predictor. Each call gets the answer for its own image, equal bit by bit to the
    answer of a single thread. With LiteRT, calls run at the same time on up to as many interpreters as there are cores.
    With ONNX Runtime they run at the same time and share the threads of one session. With TensorRT they wait for each
    other. For the highest throughput of many threads, load with `threads=1`: then calls do not compete for cores.

    A predictor can be pickled, and can be used in a forked process: the other process loads the model file anew when
    it first needs it, and refuses a file that was changed. CUDA does not survive a fork: with a GPU, start processes
    by `spawn`.

    `close` releases the engine, and so does leaving a `with` block.
    """

    def __init__(
        self, bundle: Bundle, file: ModelFile, engine: Engine, operating_point: OperatingPoint, threads: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:  # fmt: skip
        self.manifest = bundle.manifest
        self.file = file
        self.operating_point = operating_point
        self._bundle = bundle
        self._threads = threads
        self._max_pixels = max_pixels
        self._engine: Engine | None = engine
        self._gradients: IntegratedGradients | None = None
        self._lock = Lock()
        self._closed = False
        _LIVE.add(self)

    @property
    def engine(self) -> Engine:
        """The engine that runs the file.

        Raises
        ------
        EngineError
            If the predictor was closed.
        """
        if (engine := self._engine) is None:
            with self._lock:
                if self._closed:
                    raise EngineError(f"{self.file.path}: this predictor was closed; load the model again")
                engine = self._engine = self._engine or open_engine(self._bundle, self.file, self._threads)
        return engine

    def close(self) -> None:
        """Release the engine and its memory, once running calls have ended; a later call raises EngineError."""
        with self._lock:
            self._closed = True
            self._engine = self._gradients = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process."""
        return self.__dict__ | {"_engine": None, "_gradients": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": Lock()}
        _LIVE.add(self)

    def _leave_to_parent(self) -> list[object]:
        """Forget what a forked process cannot use, and return it."""
        left: list[object] = [self._engine, self._gradients]
        self._engine, self._gradients, self._lock = None, None, Lock()
        return left

    def predict(self, image: ImageSource) -> Prediction:
        """Decide on one radiograph: a path, the bytes of a file, or an array (see `read_image`).

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        return self._predict(image)[1]

    def explain(
        self, image: ImageSource, method: str = "gradcam", max_steps: int = MAX_STEPS, baseline: str = BASELINES[0]
    ) -> Explanation:
        """Decide on one radiograph and draw where the decision comes from.

        Parameters
        ----------
        method
            `gradcam`, in all files at no cost; `ig`, integrated gradients, sharper and dearer: one pass through
            gradient.onnx for each step, in ONNX Runtime whatever the engine of the decision.
        max_steps, baseline
            Of integrated gradients, see `IntegratedGradients.explain`.

        Raises
        ------
        ImageError
            If the image cannot be read.
        BundleError, EngineError, MissingExtraError
            If integrated gradients cannot be had here.
        """
        if method not in METHODS:
            raise UsageError(f"no method {method!r}; known: {', '.join(METHODS)}")
        gradients = self.integrated_gradients if method == "ig" else None
        pixels, prediction = self._predict(image)
        gray = read_image(image, max_pixels=self._max_pixels)  # in full: the network's copy may have been reduced
        caption = _caption(prediction)
        if gradients is None:
            from cxr_edge.runtime.explanation.gradcam import overlay

            return Explanation(
                prediction, overlay(gray, prediction.heatmap, self.manifest.heatmap, self.manifest.input, caption)
            )
        from cxr_edge.runtime.explanation.attribution import attribution_picture

        attribution = gradients.explain(pixels, max_steps, baseline)
        if not attribution.is_complete:
            warnings.warn(
                f"integrated gradients with {attribution.steps} steps are {attribution.completeness_error:.0%} off the "
                "change of the logit; allow more steps",
                CxrEdgeWarning,
                stacklevel=2,
            )
        return Explanation(prediction, attribution_picture(gray, attribution, caption), attribution)

    @property
    def integrated_gradients(self) -> IntegratedGradients:
        """The bundle's gradient file, loaded on first use; raises like `IntegratedGradients.of_bundle`."""
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.file.path}: this predictor was closed; load the model again")
            if self._gradients is None:
                from cxr_edge.runtime.explanation.attribution import IntegratedGradients

                self._gradients = IntegratedGradients.of_bundle(self._bundle, self._threads)
            return self._gradients

    def predict_many(self, images: Iterable[ImageSource], batch_size: int = 32) -> Iterator[Prediction | ImageError]:
        """Decide on many radiographs, in order, decoding on all cores.

        Yields
        ------
        A `Prediction`, or the `ImageError` of an image that cannot be read; the others are done all the same.
        """
        for chunk in chunks(images, batch_size):
            yield from self._predict_chunk(chunk)

    def _predict(self, image: ImageSource) -> tuple[Gray, Prediction]:
        """Decide on one radiograph; also what the network saw, (height, width, 1) uint8."""
        height, width = self.manifest.input.height, self.manifest.input.width
        start = perf_counter()
        gray = read_image(image, *minimum_sides(height, width), self._max_pixels)
        decoded = perf_counter()
        pixels = preprocess(gray, height, width)
        preprocessed = perf_counter()
        outputs = self.engine.run(pixels[np.newaxis])
        stages = {
            "decode": decoded - start,
            "preprocess": preprocessed - decoded,
            "inference": perf_counter() - preprocessed,
        }
        return pixels, self._decide(outputs, 0, stages)

    def _predict_chunk(self, images: Sequence[ImageSource]) -> Iterator[Prediction | ImageError]:
        start = perf_counter()
        feed = self.manifest.input
        inputs = list(read_inputs(images, feed.height, feed.width, self._max_pixels))
        read = perf_counter()
        pixels = [i for i in inputs if not isinstance(i, ImageError)]
        if pixels:
            outputs = self.engine.run(np.stack(pixels))
            done = perf_counter()
            stages = {"decode+preprocess": (read - start) / len(inputs), "inference": (done - read) / len(pixels)}
        row = 0
        for entry in inputs:
            if isinstance(entry, ImageError):
                yield entry
            else:
                yield self._decide(outputs, row, stages)
                row += 1

    def _decide(self, outputs: Outputs, row: int, seconds: Mapping[str, float]) -> Prediction:
        probability = float(outputs.probability[row])
        novelty = float(outputs.novelty[row])
        point = self.operating_point
        timings = {stage: 1e3 * s for stage, s in seconds.items()}
        return Prediction(
            label=self.manifest.classes[int(probability >= point.threshold)],
            probability=probability,
            logit=float(outputs.logit[row]),
            operating_point=point.name,
            threshold=point.threshold,
            heatmap=outputs.heatmap[row],
            novelty=novelty,
            in_distribution=novelty <= self.manifest.novelty_threshold,
            timings_ms=timings | {"total": sum(timings.values())},
        )


def load(
    bundle: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    precision: str = "auto",
    operating_point: str | None = None,
    threads: int | None = None,
    trusted: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Predictor:
    """Load a model.

    Parameters
    ----------
    bundle
        A bundle folder, or a lone model file with the facts inside; the model of the package if None.
    engine
        `onnx`, `litert`, `tensorrt`, or `auto`: the first of tensorrt, litert, onnx that is installed and has a file.
    precision
        `fp32`, `fp16`, `int8`, or `auto`: the most exact one that the bundle has for the engine.
    operating_point
        Name of the threshold to decide by; the manifest's first if None.
    threads
        CPU threads of the engine; up to 4 of the available cores if None.
    trusted
        Public key (PEM file) that the bundle must be signed with (`cxr-edge sign`); checked before anything is used.
    max_pixels
        An image file with more pixels is refused before it is decoded.

    Raises
    ------
    BundleError, IntegrityError
        If there is no bundle, a file is not what the manifest vouches for, or the signature is missing or bad.
    EngineError, MissingExtraError
        If the engine is not installed, has no file, or cannot run here.
    """
    opened = Bundle.open(bundle or packaged_model(), trusted)
    point = opened.manifest.operating_point(operating_point)
    file = select(opened, engine, precision)
    if warning := opened.warning(file):
        warnings.warn(warning, CxrEdgeWarning, stacklevel=2)
    threads = threads or min(4, os.cpu_count() or 1)
    return Predictor(opened, file, open_engine(opened, file, threads), point, threads, max_pixels)


def packaged_model() -> Path:
    """The bundle that ships inside the package.

    Raises
    ------
    BundleError
        If this build carries none.
    """
    folder = Path(__file__).parent / "model"
    if not folder.is_dir():
        raise BundleError("this build of cxr-edge carries no model; name a bundle with -m (load(bundle=…) in Python)")
    return folder


def _caption(prediction: Prediction) -> str:
    doubt = "" if prediction.in_distribution else "  UNLIKE THE TRAINING SET"
    return f"{prediction.label}  p={prediction.probability:.3f}  threshold={prediction.threshold:.3f}{doubt}"


def _after_fork() -> None:
    """Let every predictor of a forked process load its file anew.

    The threads of an engine are not forked, so a call could wait for them forever. Freeing the engine would wait for
    them too: ONNX Runtime crashes there when the process ends. So the references are never given up.
    """
    import ctypes

    for predictor in list(_LIVE):
        for left in predictor._leave_to_parent():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

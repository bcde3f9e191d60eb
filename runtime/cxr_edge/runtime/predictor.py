"""Prediction for an image: decode, preprocess, run the engine, apply the operating point."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile, OperatingPoint
from cxr_edge.runtime.choices import BASELINES, MAX_PIXELS, MAX_STEPS, METHODS
from cxr_edge.runtime.engines import Engine, Outputs, open_engine, select
from cxr_edge.runtime.errors import BundleError, CxrEdgeWarning, EngineError, ImageError, UsageError
from cxr_edge.runtime.imaging.gray import Gray
from cxr_edge.runtime.imaging.image import ImageSource, in_memory, read_image
from cxr_edge.runtime.imaging.preprocess import chunks, minimum_sides, preprocess, read_inputs
from cxr_edge.runtime.prediction import Explanation, Prediction, describe, kind_of

if TYPE_CHECKING:
    from cxr_edge.runtime.explanation.attribution import IntegratedGradients

#: All predictors of this process.
_LIVE: WeakSet[Predictor] = WeakSet()


class Predictor:
    """A model file loaded into its engine, with an operating point; created by `load`.

    Any number of threads may use one predictor. Each call returns the result for its own image, bit-equal to the
    result of a single thread. With LiteRT, calls run in parallel on up to one interpreter per core. With ONNX Runtime
    they run in parallel and share the threads of one session. With TensorRT they run one after another. For the highest
    throughput of many threads, load with `threads=1`; the calls then do not compete for cores.

    A predictor can be pickled and can be used in a forked process. The other process loads the model file again on
    first use, and refuses a file that was changed. CUDA does not survive a fork: with a GPU, start processes with
    `spawn`.

    `close` releases the engine, and so does leaving a `with` block.
    """

    def __init__(
        self, bundle: Bundle, file: ModelFile, engine: Engine, operating_point: OperatingPoint, threads: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:  # fmt: skip
        self.manifest = bundle.manifest
        self.file = file
        self.operating_point = operating_point
        self.bundle = bundle
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
                self._refuse_if_closed()
                engine = self._engine = self._engine or open_engine(self.bundle, self.file, self._threads)
        return engine

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineError(f"{self.file.path}: this predictor was closed; load the model again")

    def close(self) -> None:
        """Release the engine and its memory after running calls have ended; later calls raise EngineError."""
        with self._lock:
            self._closed = True
            self._engine = self._gradients = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """State without the objects that belong to this process."""
        return self.__dict__ | {"_engine": None, "_gradients": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": Lock()}
        _LIVE.add(self)

    def _leave_to_parent(self) -> list[object]:
        """Drop and return what a forked process cannot use."""
        left: list[object] = [self._engine, self._gradients]
        self._engine, self._gradients, self._lock = None, None, Lock()
        return left

    def at(self, operating_point: str) -> Predictor:
        """A predictor with another operating point of the same model; both share the engine.

        Raises
        ------
        UsageError
            If the model has no such operating point.
        """
        point = self.manifest.operating_point(operating_point)
        return Predictor(self.bundle, self.file, self.engine, point, self._threads, self._max_pixels)

    def predict(self, image: ImageSource, name: str | None = None) -> Prediction:
        """Decide on one radiograph: a path, the bytes of a file, or an array (see `read_image`).

        Parameters
        ----------
        name
            Name of the image in errors; by default its path, or what it is.

        Raises
        ------
        ImageError
            If the image cannot be read.
        """
        return self._predict(image, name)[1]

    def explain(
        self, image: ImageSource, method: str = "gradcam", max_steps: int = MAX_STEPS, baseline: str = BASELINES[0],
        name: str | None = None,
    ) -> Explanation:  # fmt: skip
        """Decide on one radiograph and draw the evidence for the decision.

        Parameters
        ----------
        method
            `gradcam`, which every file computes at no extra cost, or `ig` (integrated gradients), which is sharper but
            slower: one pass through gradient.onnx for each step, always in ONNX Runtime.
        max_steps, baseline
            Parameters of integrated gradients; see `IntegratedGradients.explain`.
        name
            Name of the image in errors; by default its path, or what it is.

        Raises
        ------
        ImageError
            If the image cannot be read.
        BundleError, EngineError, MissingExtraError
            If integrated gradients are not available here.
        """
        if method not in METHODS:
            raise UsageError(f"unknown method {method!r}; expected one of: {', '.join(METHODS)}")
        gradients = self.integrated_gradients if method == "ig" else None
        source, default = in_memory(image, self._max_pixels)  # a pipe can be read only once
        name = name or default
        pixels, prediction = self._predict(source, name)
        gray = read_image(source, max_pixels=self._max_pixels, name=name)  # at full size, for the picture
        caption = describe(prediction)
        if gradients is None:
            from cxr_edge.runtime.explanation.gradcam import overlay

            return Explanation(
                prediction,
                overlay(
                    gray, prediction.heatmap, self.manifest.heatmap, self.manifest.input, caption, prediction.lungs
                ),
            )
        from cxr_edge.runtime.explanation.attribution import attribution_picture

        attribution = gradients.explain(pixels, max_steps, baseline)
        if not attribution.is_complete:
            warnings.warn(
                f"integrated gradients with {attribution.steps} steps differ from the change of the logit by "
                f"{attribution.completeness_error:.0%}; allow more steps",
                CxrEdgeWarning,
                stacklevel=2,
            )
        return Explanation(prediction, attribution_picture(gray, attribution, caption, prediction.lungs), attribution)

    @property
    def integrated_gradients(self) -> IntegratedGradients:
        """The gradient file of the bundle, loaded on first use; raises like `IntegratedGradients.of_bundle`."""
        with self._lock:
            self._refuse_if_closed()
            if self._gradients is None:
                from cxr_edge.runtime.explanation.attribution import IntegratedGradients

                self._gradients = IntegratedGradients.of_bundle(self.bundle, self._threads)
            return self._gradients

    def predict_many(self, images: Iterable[ImageSource], batch_size: int = 32) -> Iterator[Prediction | ImageError]:
        """Decide on many radiographs, in order, decoding on all cores.

        Yields
        ------
        A `Prediction`, or the `ImageError` of an image that cannot be read. Such an image does not affect the others.
        """
        for chunk in chunks(images, batch_size):
            yield from self._predict_chunk(chunk)

    def _predict(self, image: ImageSource, name: str | None = None) -> tuple[Gray, Prediction]:
        """Return the network's input, (height, width, 1) uint8, and the prediction; errors name the image `name`."""
        height, width = self.manifest.input.height, self.manifest.input.width
        start = perf_counter()
        gray = read_image(image, *minimum_sides(height, width), self._max_pixels, name)
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
        novelty, limit = float(outputs.novelty[row]), self.manifest.novelty_threshold
        beyond = None if outputs.unlike is None else outputs.unlike[row]
        point = self.operating_point
        timings = {stage: 1e3 * s for stage, s in seconds.items()}
        site, logit = self.manifest.site, float(outputs.logit[row])
        return Prediction(
            label=self.manifest.answers(point)[point.answer(probability)],
            probability=probability,
            logit=logit,
            operating_point=point.name,
            threshold=point.threshold,
            rule_out=point.rule_out,
            heatmap=outputs.heatmap[row],
            novelty=novelty,
            in_distribution=novelty <= limit,
            unlike=None if novelty <= limit else kind_of(beyond, novelty, self.manifest.novelty_kinds),
            beyond=beyond,
            calibrated=None if site is None else site.date,
            site_probability=None if site is None else site.probability(logit),
            timings_ms=timings | {"total": sum(timings.values())},
            **self._lungs(outputs, row),
        )

    def _lungs(self, outputs: Outputs, row: int) -> dict[str, Any]:
        """The fields of a prediction about the lungs; empty if the model does not find them."""
        if outputs.lungs is None:
            return {}
        from cxr_edge.runtime.explanation.lungs import evidence_inside, find_lungs

        lungs = find_lungs(outputs.lungs[row])
        share = evidence_inside(outputs.heatmap[row], lungs.hull, self.manifest.heatmap, self.manifest.input)
        return {"lungs": outputs.lungs[row], "lungs_found": lungs.found, "evidence_in_lungs": share}


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
        A bundle folder or a lone model file; None means the packaged model.
    engine
        `onnx`, `litert`, `tensorrt`, or `auto`: the first of tensorrt, litert and onnx that is installed and
        for which the bundle has a file.
    precision
        `fp32`, `fp16`, `int8`, or `auto`: the most exact precision that the bundle has for the engine.
    operating_point
        Name of the operating point; None means the first one of the manifest.
    threads
        CPU threads of the engine; None means the number of cores, up to 4.
    trusted
        Public key (PEM file). The bundle must be signed with it (`cxr-edge sign`); this is checked before any use.
    max_pixels
        Image files with more pixels are refused before they are decoded.

    Raises
    ------
    BundleError, IntegrityError
        If there is no bundle, a file differs from the manifest, or the signature is missing or invalid.
    EngineError, MissingExtraError
        If the engine is not installed, the bundle has no file for it, or it cannot run here.
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
        If this build contains no model.
    """
    folder = Path(__file__).parent / "model"
    if not folder.is_dir():
        raise BundleError("this build of cxr-edge contains no model; name a bundle with -m (load(bundle=…) in Python)")
    return folder


def _after_fork() -> None:
    """Make every predictor of a forked process load its file again.

    The threads of an engine are not forked, so a call could wait for them forever. Freeing the engine would also wait
    for them, and ONNX Runtime crashes then when the process ends. Therefore the references are never released.
    """
    import ctypes

    for predictor in list(_LIVE):
        for left in predictor._leave_to_parent():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

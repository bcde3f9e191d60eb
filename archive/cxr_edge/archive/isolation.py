"""Decisions in a process of their own, for blocks whose worker has died: an image may crash a decoder.

Ray repeats the block of a worker that died, without end. From the third attempt on, each image is decided on in another
process. An image that ends it becomes a row with an error, and the next one gets a new process.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Lock

from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.prediction import Prediction
from cxr_edge.runtime.predictor import Predictor

_predictor: Predictor | None = None


class IsolatedPredictor:
    """A predictor that survives images which crash a decoder or the engine; one image at a time."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = Lock()
        self._pool: ProcessPoolExecutor | None = None

    def predict(self, image: bytes, name: str | None = None) -> Prediction:
        """Like `Predictor.predict`; ImageError also if the process ends."""
        with self._lock:
            try:
                return self._process().submit(_predict, image, name).result()
            except BrokenProcessPool as error:
                self.close()
                raise ImageError(
                    f"{name}: ended the process that decoded it; look at the file, or export it again"
                ) from error

    def close(self) -> None:
        """End the process."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _process(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # A forked process would share the threads of the engine.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, _keep, (self._predictor,))
        return self._pool


def _keep(predictor: Predictor) -> None:
    """Keep the predictor of this process; it loads the model again."""
    global _predictor
    _predictor = predictor


def _predict(image: bytes, name: str | None) -> Prediction:
    assert _predictor is not None
    return _predictor.predict(image, name)

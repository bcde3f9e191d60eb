"""A process that predicts: it takes jobs from the service one at a time, and ends when the service does.

Decoders and engines are native code. A crash, or a job that takes too long, ends only this process.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import traceback
import warnings
from base64 import b64encode
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.errors import CxrEdgeError, ImageError
from cxr_edge.serve.channel import receive, send

if TYPE_CHECKING:
    from cxr_edge.runtime.prediction import Prediction
    from cxr_edge.runtime.predictor import Predictor
    from cxr_edge.serve.channel import Header

Reply = tuple[dict[str, Any], bytes]


def main() -> None:
    """Serve the jobs of the socket whose number is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the service drains first
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        first = receive(connection)
        if first is None:
            return
        try:
            worker, greeting = open_worker(first[0])
        except Exception as error:
            send(connection, _failure(error))
            return
        send(connection, greeting)
        while (job := receive(connection)) is not None:
            send(connection, *worker.answer(*job))


def open_worker(choice: Mapping[str, Any]) -> tuple[Worker, dict[str, Any]]:
    """Load and check the model; return the worker and its greeting: the description of the model, and warnings."""
    from cxr_edge.runtime.predictor import load
    from cxr_edge.serve.selftest import check_model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictor = load(**choice, threads=1)
    tested = check_model(predictor)
    worker = Worker(predictor, choice["max_pixels"])
    worker.warm_up()
    model = describe(predictor, tested, choice["max_pixels"])
    return worker, {"model": model, "warnings": [str(warning.message) for warning in caught]}


class Worker:
    """The jobs that a loaded model can do."""

    def __init__(self, predictor: Predictor, max_pixels: int) -> None:
        points = predictor.manifest.operating_points
        self._predictors = {point.name: predictor.at(point.name) for point in points}
        self._default, self._max_pixels = predictor, max_pixels
        self._jobs: dict[str, Callable[[Header, bytes], Reply]] = {"image": self._image, "infer": self._infer}

    def warm_up(self) -> None:
        """Import the decoders that are imported on first use, so that the first request does not wait for them."""
        import cxr_edge.runtime.explanation.gradcam
        import cxr_edge.runtime.imaging.formats
        import cxr_edge.serve.inference  # noqa: F401

    def answer(self, header: Header, body: bytes) -> Reply:
        """Do a job; a defect becomes an answer, so that the worker survives it."""
        start = perf_counter()
        try:
            reply, content = self._jobs[header["kind"]](header, body)
        except Exception as error:
            reply, content = _failure(error) | {"status": 500}, _apology(header)
        return reply | {"seconds": perf_counter() - start}, content

    def _image(self, header: Header, body: bytes) -> Reply:
        """Decide on one image; the content of the reply is its JSON object."""
        row: dict[str, Any] = {"path": header["name"]}
        predictor = self._predictors.get(header["operating_point"], self._default)
        try:
            prediction, pictures = _predict(predictor, body, header["heatmap"] == "png")
            if header["radiograph"] == "png":
                pictures["radiograph_png"] = _radiograph(body, self._max_pixels)
        except ImageError as error:
            row["error"] = {"type": type(error).__name__, "message": str(error)}
            return {"status": 422, "answer": "error"}, json.dumps(row).encode()
        fields = prediction.to_dict()
        if header["heatmap"] == "none":
            del fields["heatmap"]
        facts = {"status": 200, "answer": prediction.label, "in_distribution": prediction.in_distribution}
        return facts, json.dumps(row | fields | pictures).encode()

    def _infer(self, header: Header, body: bytes) -> Reply:
        """Run the network on raw pixels; see `inference`."""
        from cxr_edge.serve.inference import infer

        return infer(self._default, body, header["json_length"], header["max_images"])


def _predict(predictor: Predictor, image: bytes, picture: bool) -> tuple[Prediction, dict[str, str]]:
    """The prediction, and the picture of the heatmap if it was asked for."""
    if not picture:
        return predictor.predict(image, name="image"), {}
    from cxr_edge.runtime.explanation.gradcam import encode_picture

    explanation = predictor.explain(image, name="image")
    return explanation.prediction, {"heatmap_png": b64encode(encode_picture(explanation.picture)).decode()}


def _radiograph(image: bytes, max_pixels: int) -> str:
    import cv2

    from cxr_edge.runtime.explanation.gradcam import scaled_radiograph
    from cxr_edge.runtime.imaging.image import read_image

    gray = scaled_radiograph(read_image(image, max_pixels=max_pixels, name="image"))
    return b64encode(cv2.imencode(".png", gray)[1].tobytes()).decode()


def describe(predictor: Predictor, tested: str, max_pixels: int) -> dict[str, Any]:
    """Facts of the model for `/v1/model` and the inference protocol."""
    from dataclasses import asdict
    from importlib.metadata import version

    from cxr_edge.runtime.bundles.manifest import CARD

    manifest, file = predictor.manifest, predictor.file
    card = predictor.bundle.folder / CARD
    points = (predictor.operating_point, *(p for p in manifest.operating_points if p != predictor.operating_point))
    return {
        "name": manifest.name,
        "version": version("cxr-edge"),
        "created": manifest.created,
        "file": asdict(file),
        "backend": predictor.engine.backend,
        "verified": predictor.bundle.verified(file),
        "self_test": tested,
        "input": asdict(manifest.input),
        "classes": list(manifest.classes),
        "operating_points": [asdict(point) for point in points],
        "heatmap": asdict(manifest.heatmap),
        "lungs": manifest.lungs and asdict(manifest.lungs),
        "novelty_threshold": manifest.novelty_threshold,
        "novelty_kinds": list(manifest.novelty_kinds),
        "metrics": manifest.training.get("metrics", {}),
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        "outputs": _outputs(predictor),
        "max_pixels": max_pixels,
    }


def _outputs(predictor: Predictor) -> dict[str, list[int]]:
    """Name -> shape of each output, without the axis of images."""
    import numpy as np

    feed = predictor.manifest.input
    found = predictor.engine.run(np.zeros((1, feed.height, feed.width, 1), np.uint8))
    return {name: list(getattr(found, name).shape[1:]) for name in found.given}


def _apology(header: Header) -> bytes:
    text = "this is a defect of cxr-edge; please report the log of the service"
    if header["kind"] == "infer":
        return json.dumps({"error": text}).encode()
    return json.dumps({"path": header["name"], "error": {"type": "Defect", "message": text}}).encode()


def _failure(error: Exception) -> dict[str, Any]:
    """What the service is told about an error; a defect has its traceback, which names no file of a client."""
    facts = {"error": {"type": type(error).__name__, "message": str(error)}}
    return facts if isinstance(error, CxrEdgeError) else facts | {"traceback": traceback.format_exc()}

"""The least that a decision needs: decoder, resizing and engine, called directly. The rest of the time is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cxr_edge.benchmarks.sessions import onnx_session
from cxr_edge.runtime.imaging.preprocess import minimum_sides, preprocess
from cxr_edge.runtime.predictor import Predictor


def bare(predictor: Predictor, threads: int) -> Callable[[Path], Any]:
    """Read a JPEG file, decode, resize, and run the engine; the outputs are copied, but not interpreted.

    The decoder has the settings of the runtime, so that both do the same work.
    """
    import simplejpeg

    feed = predictor.manifest.input
    height, width = minimum_sides(feed.height, feed.width)
    run = _engine(predictor, threads)

    def decide(path: Path) -> Any:
        content = path.read_bytes()
        gray = simplejpeg.decode_jpeg(content, "GRAY", min_height=height, min_width=width, strict=True)
        return run(preprocess(gray[:, :, 0], feed.height, feed.width)[np.newaxis])

    return decide


def _engine(predictor: Predictor, threads: int) -> Callable[[Any], Any]:
    path = predictor.bundle.folder / predictor.file.path
    if path.suffix == ".onnx":
        session = onnx_session(path, threads)
        return lambda image: session.run(None, {"image": image})
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    runner = interpreter.get_signature_runner()
    return lambda image: (interpreter, runner(image=image))

"""How close the activations of a network come to the limits of half precision, on real images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import evenly, read_dataset, read_pixels
from cxr_edge.export.verification.taps import open_with_outputs
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import EngineError, MissingExtraError

#: Largest finite value of half precision (IEEE 754-2019, binary16).
LARGEST = 65504.0
#: Other images may give larger activations. We assume that they are larger by this factor at most.
MARGIN = 4.0


@dataclass(frozen=True)
class Magnitude:
    """The largest absolute value of one tensor over all images, and the operator that computes it."""

    tensor: str
    operator: str
    largest: float

    @property
    def overflows(self) -> bool:
        """Whether it exceeds the range of half precision, with the margin, or is not finite."""
        return not self.largest * MARGIN <= LARGEST


def check_overflow(bundle: Bundle, data: Path, count: int) -> list[Magnitude]:
    """Measure the activations of a bundle's fp32 ONNX file on `count` radiographs, evenly spread over a data set.

    Raises
    ------
    EngineError
        If the bundle has no fp32 ONNX file.
    DataError, MissingExtraError
        If the data set cannot be used, or onnx or ONNX Runtime is not installed.
    """
    source = bundle.find("onnx", "fp32")
    if source is None:
        raise EngineError(
            f"{bundle.folder}: found no fp32 ONNX file, expected one; export the bundle with --format onnx"
        )
    feed = bundle.manifest.input
    pixels = read_pixels(evenly(read_dataset(data, ("train", "val")), count), feed.height, feed.width)
    return activation_magnitudes(bundle.check(source), pixels)


def activation_magnitudes(onnx_file: Path, images: Iterable[npt.NDArray[np.uint8]]) -> list[Magnitude]:
    """Run an fp32 ONNX file in ONNX Runtime without fusion, with every intermediate tensor as an output.

    Parameters
    ----------
    onnx_file
        Model file with one input.
    images
        Each (height, width, 1) uint8 in [0, 255]. They run one by one, because all activations stay in memory.

    Returns
    -------
    list[Magnitude]
        Of every float tensor, largest first.

    Raises
    ------
    MissingExtraError
        If onnx or ONNX Runtime is not installed.
    """
    try:
        import onnx
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", error.name) from error

    model = onnx.load(onnx_file)
    operators = {name: node.op_type for node in model.graph.node for name in node.output if name}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_with_outputs(model, operators, options)
    names = [value.name for value in session.get_outputs() if value.type == "tensor(float)"]
    largest = np.zeros(len(names))
    for image in images:
        found = session.run(names, {session.get_inputs()[0].name: image[np.newaxis]})
        # np.maximum keeps NaN, so that no NaN is lost.
        largest = np.maximum(largest, [np.abs(values).max(initial=0) for values in found])
    ordered = np.argsort(-largest)
    return [Magnitude(names[i], operators[names[i]], float(largest[i])) for i in ordered]

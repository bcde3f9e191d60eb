"""Deployment graph -> TFLite fp32, fp16 and full int8."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.export.metadata import LABELS, add_metadata
from cxr_edge.runtime.bundle import MANIFEST
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras


def tflite_from_keras(model: keras.Model, precision: str, calibration: npt.NDArray[np.uint8] | None = None) -> bytes:
    """Convert a deployment graph to TFLite.

    Parameters
    ----------
    model
        With a uint8 input for fp32 and fp16, a float32 input for int8.
    precision
        `fp32`; `fp16`: weights in half precision; `int8`: weights and activations, with a raw uint8 input.
    calibration
        (N, H, W, 1) uint8: the radiographs that set the int8 ranges.

    Returns
    -------
    The flatbuffer.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)  # `from_keras_model` would print every captured tensor
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        _configure(converter, precision, calibration)
        with quiet_native_stderr():
            return bytes(converter.convert())


def _configure(converter: Any, precision: str, calibration: npt.NDArray[np.uint8] | None) -> None:
    import tensorflow as tf

    if precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        assert calibration is not None

        def representative() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
            for image in calibration:
                yield {"image": image[np.newaxis].astype(np.float32)}

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        # The graph normalises, so this input is quantised with scale 1 and zero point 0: pixels go in as they are.
        converter.inference_input_type = tf.uint8


def write_tflite(flatbuffer: bytes, path: Path, facts: str, labels: tuple[str, ...]) -> None:
    """Write a TFLite file with its metadata, the manifest's facts and the labels inside.

    Metadata is a table in the flatbuffer; the files that it names are a zip appended to it, which interpreters do not
    look at.
    """
    path.write_bytes(add_metadata(flatbuffer, MANIFEST))
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in ((MANIFEST, facts), (LABELS, "\n".join(labels) + "\n")):
            # A fixed date, so that the same model gives the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)

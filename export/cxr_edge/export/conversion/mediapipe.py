"""The variant that standard clients load as it is: a colour image in, a score for each class out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.engines.litert import LiteRTEngine, open_signature
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras

#: Red, green and blue in gray, in units of 2^-15 (ITU-R BT.601, as OpenCV rounds them). All products and sums stay
#: below 2^24, where float32 is exact; half precision does not hold these numbers.
LUMA = (9798.0, 19235.0, 3735.0)


def classifier_model(deployment: keras.Model) -> keras.Model:
    """Wrap a deployment graph as what MediaPipe Tasks' `ImageClassifier` and ML Kit expect.

    Parameters
    ----------
    deployment
        With a float32 input.

    Returns
    -------
    `image`, (N, H, W, 3) uint8 RGB in [0, 255] -> `scores`, (N, 2) float32: 1 - probability, and probability.
    """
    import keras
    from keras import ops

    image = keras.Input((*deployment.input_shape[1:3], 3), dtype="uint8", name="image")
    probability = deployment(to_gray(image))["probability"][:, None]
    scores = ops.concatenate([1 - probability, probability], axis=1)
    return keras.Model(image, {"scores": scores}, name=deployment.name)


def to_gray(rgb: Any) -> Any:
    """Gray of colours, equal to OpenCV's; a grayscale image in three equal channels comes out as it was.

    Parameters
    ----------
    rgb
        Tensor, (N, H, W, 3) in [0, 255].

    Returns
    -------
    Tensor, (N, H, W, 1) float32, whole numbers in [0, 255].
    """
    from keras import ops

    rgb = ops.cast(rgb, "float32")
    return ops.floor((ops.sum(rgb * ops.array(LUMA), axis=-1, keepdims=True) + 2.0**14) * 2.0**-15)


class ClassifierEngine:
    """The variant in LiteRT, to be held against the trained network: a radiograph goes in as three equal channels.

    Of what `Outputs` holds it gives the probability only. Its logit is the probability's, for the order of images; its
    heatmap is empty, its novelty not a number.
    """

    backend = LiteRTEngine.backend
    given = ("probability",)

    def __init__(self, path: Path, contract: InputContract, threads: int) -> None:
        colour = replace(contract, channels=3)
        with quiet_native_stderr():
            self._signature = open_signature(path, path.read_bytes(), colour, threads, ("scores",))

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        colours = np.repeat(images, 3, axis=-1)
        normal, pneumonia = np.concatenate([self._signature.run(image=row[np.newaxis])["scores"] for row in colours]).T
        with np.errstate(divide="ignore"):  # a probability of 0 or 1
            logit = np.log(pneumonia) - np.log(normal)
        count = len(images)
        return Outputs(pneumonia, logit, np.zeros((count, 1, 1), np.float32), np.full(count, np.nan, np.float32))

"""The variant for MediaPipe Tasks and ML Kit: a colour image as input, a score for each class as output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract, LungGrid
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.engines.litert import LiteRTEngine, open_signature
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras

#: Weights of red, green and blue in gray, in units of 2^-15 (ITU-R BT.601, rounded as in OpenCV). All products and sums
#: stay below 2^24, where float32 is exact. Half precision cannot represent them.
LUMA = (9798.0, 19235.0, 3735.0)


def classifier_model(deployment: keras.Model) -> keras.Model:
    """Wrap a deployment graph for ML Kit and the `ImageClassifier` of MediaPipe Tasks.

    Parameters
    ----------
    deployment
        Deployment graph with a float32 input.

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
    """Convert colours to gray exactly as OpenCV does; three equal channels give the same values back.

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
    """Runs the variant in LiteRT, so that `verify` can compare it; a radiograph is fed as three equal channels.

    The variant gives only the probability of `Outputs`. The logit is computed from it, to rank images. The heatmap is
    empty, the novelty is NaN, and there are no lungs.
    """

    backend = LiteRTEngine.backend
    given = ("probability",)

    def __init__(self, path: Path, contract: InputContract, threads: int, lungs: LungGrid | None = None) -> None:
        colour = replace(contract, channels=3)
        with quiet_native_stderr():
            self._signature = open_signature(path, path.read_bytes(), colour, threads, needed=("scores",))

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        colours = np.repeat(images, 3, axis=-1)
        normal, pneumonia = np.concatenate([self._signature.run(image=row[np.newaxis])["scores"] for row in colours]).T
        with np.errstate(divide="ignore"):  # a probability of 0 or 1
            logit = np.log(pneumonia) - np.log(normal)
        count = len(images)
        return Outputs(pneumonia, logit, np.zeros((count, 1, 1), np.float32), np.full(count, np.nan, np.float32))

"""The variant that standard clients load as it is: a colour image in, a score for each class out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

"""The networks.

All share one head, which gives Grad-CAM in closed form:

    feature map (N, h, w, K) -> GAP "pool" -> Dense(128, ReLU) "hidden" -> Dropout -> Dense(1) "logit"

In: raw grayscale pixels, (N, H, W, 1) in [0, 255]; normalisation is the first layer. The layer names are a contract
with `cxr_edge.export.conversion.graph`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    import keras

ARCHITECTURES = ("mobilenetv2", "resnet50", "cnn")


def build(arch: str, weights: str, size: int = 224, alpha: float = 1.0, border_crop: float = 0.0) -> keras.Model:
    """Build a classifier.

    Parameters
    ----------
    arch
        One of `ARCHITECTURES`.
    weights
        `imagenet` (Keras fetches them), `none`, or the path of a `.weights.h5` file of the backbone of
        `keras.applications` without its top.
    size
        Height and width of the input (pixels), a multiple of 32.
    alpha
        Width of MobileNetV2: its channels, as a share of the usual ones (Sandler et al. 2018).
    border_crop
        Share of each side, in [0, 0.4], that the network cuts off before it enlarges the rest to `size`. It is part of
        the graph, so that every exported file does it too and the input stays a whole radiograph.

    Returns
    -------
    Model (N, size, size, 1) float32 in [0, 255] -> logit (N, 1) float32.

    Raises
    ------
    UsageError
        If there is no such architecture, it has no ImageNet weights, or the size does not suit it.
    DataError
        If the weights file does not fit, or ImageNet weights cannot be fetched.
    """
    import keras

    if arch not in ARCHITECTURES:
        raise UsageError(f"no architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")
    if size < 64 or size % 32:
        raise UsageError(f"an input of {size} pixels; the networks halve it five times: take a multiple of 32 from 64")
    if alpha != 1.0 and arch != "mobilenetv2":
        raise UsageError(f"--alpha is the width of mobilenetv2; {arch} has none")
    image = keras.Input((size, size, 1), name="image")
    seen = _crop(image, round(border_crop * size)) if border_crop else image
    body = _cnn(seen) if arch == "cnn" else _application(arch, seen, alpha)
    backbone = keras.Model(image, body)
    if weights != "none":
        _load_imagenet(backbone, arch, weights, size, alpha)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    x = keras.layers.Dense(128, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(x)
    # float32, so that a mixed-precision run neither rounds nor overflows its logits.
    logit = keras.layers.Dense(1, name="logit", dtype="float32")(x)
    return keras.Model(image, logit, name=arch)


def _crop(image: Any, pixels: int) -> Any:
    """The image without its border, enlarged to its former size."""
    import keras

    size = image.shape[1]
    # Both in float32, where a mixed-precision run would round pixels.
    inner = keras.layers.Cropping2D(pixels, name="crop", dtype="float32")(image)
    return keras.layers.Resizing(size, size, "bilinear", name="enlarge", dtype="float32")(inner)


def _application(arch: str, image: Any, alpha: float) -> Any:
    """The last feature map of a network of keras.applications on one grayscale channel."""
    import keras

    if arch == "mobilenetv2":
        scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(image)
        return keras.applications.MobileNetV2(input_tensor=scaled, alpha=alpha, include_top=False, weights=None).output
    # "Caffe" preprocessing subtracts the ImageNet mean of each channel; on grey pixels, the mean of the three.
    centred = keras.layers.Rescaling(1.0, offset=-(103.939 + 116.779 + 123.68) / 3, name="normalise")(image)
    return keras.applications.ResNet50(input_tensor=centred, include_top=False, weights=None).output


def _cnn(image: Any) -> Any:
    """Five blocks of Conv2D, batch norm, ReLU and 2×2 max pooling, to be trained from scratch."""
    import keras

    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(image)
    for block, filters in enumerate((8, 16, 32, 64, 128), start=1):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"bn{block}")(x)
        x = keras.layers.ReLU(name=f"relu{block}")(x)
        x = keras.layers.MaxPooling2D(name=f"pool{block}")(x)
    return x


def _load_imagenet(backbone: keras.Model, arch: str, weights: str, size: int, alpha: float) -> None:
    """Copy RGB weights into a grayscale backbone.

    On equal channels a convolution is the one with its kernel summed over them: the network computes the same, with a
    third of the first layer.
    """
    if arch == "cnn":
        raise UsageError("the cnn has no ImageNet weights; use --weights none")
    rgb = _fetch(arch, size, alpha) if weights == "imagenet" else _rgb(arch, size, alpha)
    if weights != "imagenet":
        try:
            rgb.load_weights(weights)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{weights}: not the weights of {arch} without its top ({error})") from error
    for layer in rgb.layers:
        values = layer.get_weights()
        if not values:
            continue
        if values[0].ndim == 4 and values[0].shape[2] == 3:
            values[0] = values[0].sum(axis=2, keepdims=True)
        backbone.get_layer(layer.name).set_weights(values)


def _rgb(arch: str, size: int, alpha: float, weights: str | None = None) -> keras.Model:
    """The network as keras.applications has it."""
    import keras

    shape = (size, size, 3)
    if arch == "resnet50":
        return keras.applications.ResNet50(input_shape=shape, include_top=False, weights=weights)
    return keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False, weights=weights)


def _fetch(arch: str, size: int, alpha: float) -> keras.Model:
    """… with ImageNet weights, which Keras downloads once."""
    try:
        return _rgb(arch, size, alpha, "imagenet")
    except ValueError as error:  # Keras' own message lists the widths
        raise UsageError(f"no ImageNet weights of {arch} at --alpha {alpha:g}: {error}") from error
    except Exception as error:  # Keras raises no narrower one where there is no network
        raise DataError(
            f"the ImageNet weights of {arch} cannot be fetched ({error}); pass a .weights.h5 file to --weights, or none"
        ) from error


def save(model: keras.Model, path: Path) -> None:
    """Save a model as `.keras` and prove that what was saved predicts the same.

    Raises
    ------
    DataError
        If the file, read back, predicts otherwise; nothing is left at `path`.
    """
    import keras
    import numpy as np

    probe = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        model.save(written)
        reloaded = keras.models.load_model(written)
        difference = np.abs(reloaded.predict_on_batch(probe) - model.predict_on_batch(probe)).max()
        if not difference <= 1e-5:
            raise DataError(f"{path}: read back, the model's logits differ by {difference:.2g}; not saved")
        written.replace(path)

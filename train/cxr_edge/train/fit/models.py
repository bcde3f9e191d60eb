"""The network architectures, which share one head.

The head allows Grad-CAM in closed form:

    feature map (N, h, w, K) -> GAP "pool" -> Dense(128, ReLU) "hidden" -> Dropout -> Dense(1) "logit"

The input is raw grayscale pixels, (N, H, W, 1) in [0, 255]; normalisation is the first layer. A network that is trained
with lung masks has a second output, from a small decoder on features of three resolutions:

    feature map, 1/16 and 1/8 of the image -> 1×1 convolutions, enlarged and added -> "lungs" (N, H/8, W/8, 1)

The layer names are a contract with `cxr_edge.export.conversion.graph`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    import keras

ARCHITECTURES = ("mobilenetv2", "resnet50", "cnn")
#: Layers whose features the lung decoder adds to the last feature map: at 1/16 and at 1/8 of the image's size.
SKIPS = {
    "mobilenetv2": ("block_12_add", "block_5_add"),
    "resnet50": ("conv4_block6_out", "conv3_block4_out"),
    "cnn": ("pool4", "pool3"),
}
#: Channels of the lung decoder.
DECODER_CHANNELS = 32


def build(
    arch: str, weights: str, size: int = 224, alpha: float = 1.0, border_crop: float = 0.0, lungs: bool = False,
    smooth: bool = False,
) -> keras.Model:  # fmt: skip
    """Build a classifier.

    Parameters
    ----------
    arch
        One of `ARCHITECTURES`.
    weights
        `imagenet` (downloaded by Keras), `none`, or the path of a `.weights.h5` file for the backbone of
        `keras.applications` without its top.
    size
        Height and width of the input (pixels), a multiple of 32.
    alpha
        Width multiplier of MobileNetV2 (Sandler et al. 2018).
    border_crop
        Share of each side, in [0, 0.4], that the network crops before it enlarges the rest to `size`. It is part of the
        graph, so every exported file does it, and the input is always a whole radiograph.
    lungs
        Whether the network also finds the lungs.
    smooth
        Whether the network smooths its input (`_smooth`).

    Returns
    -------
    Model (N, size, size, 1) float32 in [0, 255] -> logit (N, 1) float32. With `lungs`, a second output gives the logit
    that a cell of 8×8 pixels belongs to a lung, (N, size/8, size/8, 1) float32.

    Raises
    ------
    UsageError
        If the architecture is unknown, has no ImageNet weights, or does not support the size.
    DataError
        If the weights file does not match, or ImageNet weights cannot be downloaded.
    """
    import keras

    if arch not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {arch!r}; choose one of: {', '.join(ARCHITECTURES)}")
    if size < 64 or size % 32:
        raise UsageError(f"--size {size}: the networks halve the input five times; choose a multiple of 32 from 64")
    if alpha != 1.0 and arch != "mobilenetv2":
        raise UsageError(f"--alpha is the width of mobilenetv2; {arch} has none; leave --alpha out")
    if lungs and border_crop:
        raise UsageError("--border-crop: lung masks do not fit a cropped image; leave --masks or --border-crop out")
    image = keras.Input((size, size, 1), name="image")
    seen = _crop(image, round(border_crop * size)) if border_crop else image
    seen = _smooth(seen) if smooth else seen
    body = _cnn(seen) if arch == "cnn" else _application(arch, seen, alpha)
    backbone = keras.Model(image, body)
    if weights != "none":
        _load_imagenet(backbone, arch, weights, size, alpha)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    x = keras.layers.Dense(128, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(x)
    # float32, because half precision would round logits or overflow.
    logit = keras.layers.Dense(1, name="logit", dtype="float32")(x)
    outputs = [logit, _lung_decoder(backbone, SKIPS[arch])] if lungs else logit
    return keras.Model(image, outputs, name=arch)


def _lung_decoder(backbone: keras.Model, skips: tuple[str, str]) -> Any:
    """Logits of the lungs at 1/8 of the image's size, from the last feature map and two finer ones."""
    import keras

    x = keras.layers.Conv2D(DECODER_CHANNELS, 1, name="lungs_last")(backbone.output)
    for name in skips:
        finer = keras.layers.Conv2D(DECODER_CHANNELS, 1, name=f"lungs_{name}")(backbone.get_layer(name).output)
        x = keras.layers.UpSampling2D(2, interpolation="bilinear", name=f"lungs_enlarge_{name}")(x)
        x = keras.layers.Add(name=f"lungs_add_{name}")([x, finer])
        x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"lungs_depthwise_{name}")(x)
        x = keras.layers.Conv2D(DECODER_CHANNELS, 1, activation="relu", name=f"lungs_mix_{name}")(x)
    return keras.layers.Conv2D(1, 1, name="lungs", dtype="float32")(x)


def _crop(image: Any, pixels: int) -> Any:
    """Crop the border and enlarge the rest to the former size."""
    import keras

    size = image.shape[1]
    # Both in float32, because half precision would round pixels.
    inner = keras.layers.Cropping2D(pixels, name="crop", dtype="float32")(image)
    return keras.layers.Resizing(size, size, "bilinear", name="enlarge", dtype="float32")(inner)


def _smooth(image: Any) -> Any:
    """Remove the finest structure with a fixed binomial filter of 5×5 pixels.

    Programs that make radiographs smaller leave different amounts of it, and the stride of the first convolution
    aliases it (Zhang 2019, "Making convolutional networks shift-invariant again").
    """
    import keras
    import numpy as np

    filtered = keras.layers.DepthwiseConv2D(
        5, padding="same", use_bias=False, trainable=False, name="smooth", dtype="float32"
    )
    smoothed = filtered(image)
    row = np.array([1, 4, 6, 4, 1]) / 16
    filtered.set_weights([np.outer(row, row)[..., np.newaxis, np.newaxis]])
    return smoothed


def _application(arch: str, image: Any, alpha: float) -> Any:
    """The last feature map of a network of keras.applications with one grayscale channel."""
    import keras

    if arch == "mobilenetv2":
        scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(image)
        return keras.applications.MobileNetV2(input_tensor=scaled, alpha=alpha, include_top=False, weights=None).output
    # "Caffe" preprocessing subtracts the ImageNet mean of each channel; for gray pixels, use the mean of the three.
    centred = keras.layers.Rescaling(1.0, offset=-(103.939 + 116.779 + 123.68) / 3, name="normalise")(image)
    return keras.applications.ResNet50(input_tensor=centred, include_top=False, weights=None).output


def _cnn(image: Any) -> Any:
    """Five blocks of Conv2D, batch norm, ReLU and 2×2 max pooling, for training from scratch."""
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

    For equal channels, a convolution is the same as one with its kernel summed over the channels.
    """
    if arch == "cnn":
        raise UsageError("the cnn has no ImageNet weights; use --weights none")
    rgb = _fetch(arch, size, alpha) if weights == "imagenet" else _rgb(arch, size, alpha)
    if weights != "imagenet":
        try:
            rgb.load_weights(weights)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{weights}: not the weights of {arch} without its top ({error}); choose another file"
            ) from error
    for layer in rgb.layers:
        values = layer.get_weights()
        if not values:
            continue
        if values[0].ndim == 4 and values[0].shape[2] == 3:
            values[0] = values[0].sum(axis=2, keepdims=True)
        backbone.get_layer(layer.name).set_weights(values)


def _rgb(arch: str, size: int, alpha: float, weights: str | None = None) -> keras.Model:
    """The RGB network of keras.applications."""
    import keras

    shape = (size, size, 3)
    if arch == "resnet50":
        return keras.applications.ResNet50(input_shape=shape, include_top=False, weights=weights)
    return keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False, weights=weights)


def _fetch(arch: str, size: int, alpha: float) -> keras.Model:
    """The RGB network with ImageNet weights, which Keras downloads once."""
    try:
        return _rgb(arch, size, alpha, "imagenet")
    except ValueError as error:  # the message of Keras lists the widths
        raise UsageError(f"no ImageNet weights of {arch} at --alpha {alpha:g}: {error}") from error
    except Exception as error:  # without a network connection, Keras raises a plain Exception
        raise DataError(
            f"ImageNet weights of {arch} cannot be downloaded ({error}); pass a .weights.h5 file to --weights, or none"
        ) from error


def save(model: keras.Model, path: Path) -> None:
    """Save a model as `.keras` and check that the saved file predicts the same.

    Raises
    ------
    DataError
        If the predictions of the saved file differ. Nothing is left at `path`.
    """
    import keras
    import numpy as np

    probe = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        model.save(written)
        reloaded = keras.models.load_model(written)
        outputs, expected = (_as_list(each.predict_on_batch(probe)) for each in (reloaded, model))
        difference = max(float(np.abs(a - b).max()) for a, b in zip(outputs, expected, strict=True))
        if not difference <= 1e-5:
            raise DataError(f"{path}: not saved, because its logits differ by {difference:.2g}; expected at most 1e-5")
        written.replace(path)


def _as_list(outputs: Any) -> list[Any]:
    """The outputs of a network with one output or several."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

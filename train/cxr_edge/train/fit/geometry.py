"""The places of the heatmap's cells in the image, measured on the trained network."""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry

#: Number of radiographs on which the geometry is measured.
GEOMETRY_IMAGES = 8
#: The stimulus is a Gaussian blob: amplitude (gray levels), and sigma (pixels) at an input of 224.
AMPLITUDE, SIGMA = 60.0, 8.0
#: Positions of the blob as shares of the input, in the middle, so that its response is not cut off.
POSITIONS = np.linspace(0.3, 0.7, 9)


def heatmap_geometry(network: keras.Model, pixels: npt.NDArray[np.uint8]) -> HeatmapGeometry:
    """Move a blob over radiographs and measure which cells of the last feature map respond.

    MobileNetV2 pads below and right only, so the receptive field of cell i is centred on pixel 31 + 32·i in theory,
    15.5 pixels off a plain resize of the map. Pretrained filters shift it back by half of that. It is therefore
    measured: the position whose response is centred on the middle cell gives the origin.

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8: a few radiographs.
    """
    features = keras.Model(network.inputs[0], network.get_layer("pool").input)
    size, cells = pixels.shape[1], features.output.shape[1]
    still = features.predict(pixels.astype(np.float32), verbose=0)
    centres = []
    for axis in (0, 1):
        responses = [_response(features, pixels, still, share * size, axis) for share in POSITIONS]
        slope, intercept = np.polyfit(responses, POSITIONS * size, 1)
        centres.append(slope * (cells - 1) / 2 + intercept)
    border = next((layer.cropping[0][0] for layer in network.layers if layer.name == "crop"), 0)
    stride = (size - 2 * border) / cells
    return HeatmapGeometry(stride, round(float(np.mean(centres)) - stride * (cells - 1) / 2, 1))


def _response(
    features: keras.Model, pixels: npt.NDArray[np.uint8], still: npt.NDArray[np.float32], position: float, axis: int
) -> float:
    """Mean position (cells), along an axis, of the change by a blob at `position` (pixels)."""
    grid = np.indices(pixels.shape[1:3], np.float32)
    centre = [pixels.shape[1] / 2, pixels.shape[2] / 2]
    centre[axis] = position
    sigma = SIGMA * pixels.shape[1] / 224
    blob = AMPLITUDE * np.exp(-((grid[0] - centre[0]) ** 2 + (grid[1] - centre[1]) ** 2) / (2 * sigma**2))
    moved = features.predict(np.clip(pixels + blob[np.newaxis, :, :, np.newaxis], 0, 255), verbose=0)
    change = ((moved - still) ** 2).sum(axis=(0, 2 - axis, 3))
    return float((change * np.arange(len(change))).sum() / change.sum())

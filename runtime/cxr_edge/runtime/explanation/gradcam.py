"""Pictures of the Grad-CAM heatmap: placed over the radiograph, with a colour scale."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.imaging.gray import Gray

#: Range of the longer side of the radiograph in a picture (pixels): text stays legible and files stay small.
PICTURE_SIDES = (512, 1024)
#: A map whose peak is lower than this (contribution to the logit) is drawn faint, not stretched to full colour.
FAINT_LOGIT = 0.1
#: Opacity of the hottest cell.
OPACITY = 0.6
#: Turbo as a lookup table: (256, 1, 3) uint8 RGB.
TURBO_RGB = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, np.newaxis], cv2.COLORMAP_TURBO)[:, :, ::-1].copy()
#: Colour of the outline of the lungs, which the heatmap does not use.
OUTLINE_RGB = (255, 0, 255)


def upsample(
    heatmap: FloatArray, geometry: HeatmapGeometry, contract: InputContract, height: int, width: int
) -> FloatArray:
    """Interpolate a heatmap over an image, with the value of each cell at the centre of its receptive field.

    A plain resize would place the values at the centres of equal tiles. Strided padding makes that wrong by
    half a cell.

    Parameters
    ----------
    heatmap
        (h, w) float32.
    height, width
        Sides of the image in pixels, before it is resized to the input of the network.

    Returns
    -------
    (height, width) float32: bilinear between centres, constant outside the outermost centres.
    """
    rows = interpolation(height, contract.height, heatmap.shape[0], geometry)
    columns = interpolation(width, contract.width, heatmap.shape[1], geometry)
    return np.asarray(rows @ heatmap @ columns.T, np.float32)


def interpolation(pixels: int, network_pixels: int, cells: int, geometry: HeatmapGeometry) -> FloatArray:
    """Bilinear weights of the cells for each pixel along one axis: (pixels, cells) float32, rows sum to 1."""
    # The centre of pixel x lies at (x + 0.5)·s - 0.5 in network pixels (OpenCV's convention for resizing).
    centres = (np.arange(pixels) + 0.5) * (network_pixels / pixels) - 0.5
    position = np.clip((centres - geometry.origin) / geometry.stride, 0, cells - 1)
    distance = np.abs(position[:, np.newaxis] - np.arange(cells))
    return np.asarray(np.maximum(1 - distance, 0), np.float32)


def overlay(
    gray: Gray, heatmap: FloatArray, geometry: HeatmapGeometry, contract: InputContract, caption: str,
    lungs: FloatArray | None = None,
) -> npt.NDArray[np.uint8]:  # fmt: skip
    """Draw a heatmap over its radiograph, with caption and colour scale.

    Parameters
    ----------
    gray
        (H, W) uint8: the decoded radiograph.
    heatmap
        (h, w) float32 ≥ 0: contributions to the logit.
    caption
        One or several lines.
    lungs
        (h', w') float32 in [0, 1]: map of the lungs, whose outline is drawn if it is given.

    Returns
    -------
    (H', W', 3) uint8 RGB: the radiograph with its aspect ratio and the longer side within `PICTURE_SIDES`, a caption
    above and a colour scale below. Colour and opacity increase with the contribution, up to the peak of the map.
    """
    radiograph = scaled_radiograph(gray)
    height, width = radiograph.shape
    full_scale = max(float(heatmap.max()), FAINT_LOGIT)
    heat = upsample(heatmap, geometry, contract, height, width) / full_scale
    picture = _blend(radiograph, heat)
    if lungs is not None:
        draw_outline(picture, lungs)
    return np.vstack([text_band(caption, width), picture, _scale_band(full_scale, width)])


def scaled_radiograph(gray: Gray) -> Gray:
    """Resize a radiograph (H, W) so that its longer side is within `PICTURE_SIDES`; the aspect ratio is kept."""
    factor = float(np.clip(max(gray.shape), *PICTURE_SIDES)) / max(gray.shape)
    height, width = (round(side * factor) for side in gray.shape)
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def encode_picture(picture: npt.NDArray[np.uint8]) -> bytes:
    """Encode an (H, W, 3) uint8 RGB picture as PNG."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


def _blend(gray: Gray, heat: FloatArray) -> npt.NDArray[np.uint8]:
    """Blend heat in [0, 1] with gray, both (H, W); hotter pixels are more opaque: (H, W, 3) uint8 RGB."""
    heat = np.minimum(heat, 1)
    coloured = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), TURBO_RGB)
    opacity = OPACITY * heat
    return np.asarray(cv2.blendLinear(coloured, cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), opacity, 1 - opacity), np.uint8)


def draw_outline(picture: npt.NDArray[np.uint8], lungs: FloatArray) -> None:
    """Draw the line where the map of the lungs crosses 0.5 into a picture, (H, W, 3) uint8 RGB."""
    height, width, _ = picture.shape
    inside = cv2.resize(lungs, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
    contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, OUTLINE_RGB, 1)


def text_band(text: str, width: int) -> npt.NDArray[np.uint8]:
    """Draw a black band with lines of text: (24 · lines + 4, width, 3) uint8."""
    lines = text.split("\n")
    band = np.zeros((24 * len(lines) + 4, width, 3), np.uint8)
    for number, line in enumerate(lines):
        put_text(band, line, 8, 19 + 24 * number)
    return band


def _scale_band(peak: float, width: int) -> npt.NDArray[np.uint8]:
    band = np.zeros((44, width, 3), np.uint8)
    ramp = np.tile(np.linspace(0, 1, width - 16, dtype=np.float32), (10, 1))
    band[6:16, 8:-8] = _blend(np.full(ramp.shape, 96, np.uint8), ramp)  # over mid-grey, as on the radiograph
    put_text(band, "0", 8, 35)
    put_text(band, "contribution of a cell to the pneumonia logit", (width - 330) // 2, 35)
    put_text(band, f"{peak:.2f}", width - 48, 35)
    return band


def put_text(band: npt.NDArray[np.uint8], text: str, x: int, y: int) -> None:
    """Draw small white text into a picture; (x, y) is its lower left corner."""
    cv2.putText(band, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)

"""The picture of the in-graph Grad-CAM: heatmap over radiograph, aligned, with a scale that says what it means."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import HeatmapGeometry, InputContract
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.image import Gray

#: The picture's longer side of radiograph is brought into this range (pixels): text stays legible, files small.
PICTURE_SIDES = (512, 1024)
#: A map whose peak contributes less than this to the logit is drawn faint, not stretched to full colour.
FAINT_LOGIT = 0.1
#: Opacity of the hottest cell.
OPACITY = 0.6


def upsample(heatmap: FloatArray, geometry: HeatmapGeometry, contract: InputContract, height: int, width: int) -> FloatArray:
    """Spread the cells of a heatmap over an image, each cell's value at the centre of its receptive field.

    A plain resize would place them in the middle of equal tiles, which strided padding makes wrong by half a cell.

    Parameters
    ----------
    heatmap
        (h, w) float32.
    height, width
        Of the image (pixels), which the network sees resized to the input contract.

    Returns
    -------
    (height, width) float32, bilinear between centres, constant beyond the outermost ones.
    """
    # Output pixel x has its centre at (x + 0.5)·s - 0.5 in network pixels (OpenCV's convention for resizing), and
    # there lies column (that - origin) / stride of the map.
    scale_x, scale_y = contract.width / width, contract.height / height
    columns = ((np.arange(width) + 0.5) * scale_x - 0.5 - geometry.origin) / geometry.stride
    rows = ((np.arange(height) + 0.5) * scale_y - 0.5 - geometry.origin) / geometry.stride
    map_x, map_y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return np.asarray(cv2.remap(heatmap, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)


def overlay(
    gray: Gray, heatmap: FloatArray, geometry: HeatmapGeometry, contract: InputContract, caption: str
) -> npt.NDArray[np.uint8]:
    """Draw a heatmap over its radiograph, with caption and colour scale.

    Parameters
    ----------
    gray
        (H, W) uint8: the radiograph as decoded.
    heatmap
        (h, w) float32 ≥ 0: contributions to the logit.

    Returns
    -------
    (H', W', 3) uint8 RGB: the radiograph with its own aspect ratio, longer side within `PICTURE_SIDES`, caption above
    and scale below. Colour and opacity grow with the contribution, from none to the map's peak.
    """
    longer = float(np.clip(max(gray.shape), *PICTURE_SIDES))
    factor = longer / max(gray.shape)
    height, width = (round(side * factor) for side in gray.shape)
    base = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    peak = float(heatmap.max())
    heat = upsample(heatmap, geometry, contract, height, width) / max(peak, FAINT_LOGIT)
    opacity = (OPACITY * np.clip(heat, 0, 1))[:, :, np.newaxis]
    picture = cv2.cvtColor(base, cv2.COLOR_GRAY2RGB) * (1 - opacity) + _colour(heat) * opacity
    frame = np.rint(picture).astype(np.uint8)
    return np.vstack([_text_band(caption, width), frame, _scale_band(max(peak, FAINT_LOGIT), width)])


def write_picture(path: str, picture: npt.NDArray[np.uint8]) -> bytes:
    """Encode an RGB picture by the suffix of `path`."""
    _, data = cv2.imencode(path[path.rindex(".") :], cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _colour(heat: FloatArray) -> npt.NDArray[np.uint8]:
    """Turbo, as RGB: (H, W) in [0, 1] -> (H, W, 3)."""
    coloured = cv2.applyColorMap(np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), np.uint8)


def _text_band(text: str, width: int) -> npt.NDArray[np.uint8]:
    band = np.zeros((28, width, 3), np.uint8)
    _put(band, text, 8, 19)
    return band


def _scale_band(peak: float, width: int) -> npt.NDArray[np.uint8]:
    band = np.zeros((44, width, 3), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 1, width - 16, dtype=np.float32), (10, width - 16))
    opacity = (OPACITY * ramp)[:, :, np.newaxis]
    band[6:16, 8:-8] = np.rint(_colour(ramp) * opacity + 96 * (1 - opacity))  # over mid-grey, as on the radiograph
    _put(band, "0", 8, 35)
    _put(band, "contribution of a cell to the pneumonia logit", (width - 330) // 2, 35)
    _put(band, f"{peak:.2f}", width - 48, 35)
    return band


def _put(band: npt.NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(band, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)

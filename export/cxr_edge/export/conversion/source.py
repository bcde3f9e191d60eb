"""A trained network and its calibration images, from which all formats are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from cxr_edge.common.dataset import LabelledImage, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion import quantize
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.conversion.one_channel import split_filters
from cxr_edge.runtime.bundles.bundle import InputContract

if TYPE_CHECKING:
    import keras
    import onnx


class Source:
    """The network of a run, and `pixels`, (N, H, W, 1) uint8: its calibration radiographs, of which there may be none.

    What several formats share is computed once.
    """

    def __init__(self, run: Run, feed: InputContract, calibration: Sequence[LabelledImage]) -> None:
        self.network = _with_offset_axis(run.network())
        self.pixels = read_pixels(calibration, feed.height, feed.width)
        self._run = run
        self._rounded: dict[int, keras.Model] = {}

    @cached_property
    def onnx(self) -> onnx.ModelProto:
        """The deployment graph as fp32 ONNX."""
        from cxr_edge.export.conversion.onnx import onnx_from_keras

        return onnx_from_keras(self.deployed())

    def deployed(self, steps: int | None = None, input_dtype: str = "uint8", split: bool = False) -> keras.Model:
        """The deployment graph.

        Parameters
        ----------
        steps
            Weights are rounded to integers in [-steps, steps] times a scale, unless it is None.
        split
            Whether filters of one channel become two passes, which XNNPACK computes faster (`split_filters`).
        """
        network = self.network if steps is None else self._round(steps)
        network = split_filters(network) if split else network
        return deployment_model(network, self._run.temperature, self._run.novelty, input_dtype)

    def _round(self, steps: int) -> keras.Model:
        if steps not in self._rounded:
            every = -(-len(self.pixels) // quantize.IMAGES) or 1
            self._rounded[steps] = quantize.round_weights(self.network, self.pixels[::every], steps)
        return self._rounded[steps]


def _with_offset_axis(network: keras.Model) -> keras.Model:
    """Give the offset that normalises the input an axis of length 1; the values stay.

    tf2onnx cannot move a transpose over a scalar. If a convolution precedes the offset, it gives up and leaves every
    transpose in the graph.
    """
    for layer in network.layers:
        if layer.name == "normalise":
            layer.offset = [layer.offset]
    return network

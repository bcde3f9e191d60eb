"""Integrated gradients: the contribution of each pixel to the logit, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.choices import BASELINES, MAX_STEPS
from cxr_edge.runtime.engines.base import FloatArray
from cxr_edge.runtime.engines.onnx import open_session
from cxr_edge.runtime.errors import BundleError, UsageError
from cxr_edge.runtime.explanation.gradcam import draw_outline, put_text, scaled_radiograph, text_band
from cxr_edge.runtime.imaging.gray import Gray

#: Number of points of the path in one batch; limits memory.
BATCH = 8
#: Number of steps of the first attempt.
STEPS = 32
#: Attributions with a larger completeness error are not reliable.
MAX_COMPLETENESS_ERROR = 0.05
#: Pixel attributions are noisy. The picture smooths them by a Gaussian with this share of the side as sigma.
SMOOTHING = 0.025
#: Share of the strongest pixels above full colour.
CLIPPED = 0.005
OPACITY = 0.75


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of one image.

    Attributes
    ----------
    values
        (H, W) float32 at the resolution of the network's input: the contribution of each pixel to
        logit - baseline_logit. Negative values are evidence against pneumonia.
    logit, baseline_logit
        Logits of the image and of the baseline.
    steps
        Number of steps of the trapezoid rule.
    """

    values: FloatArray
    logit: float
    baseline_logit: float
    steps: int

    @property
    def completeness_error(self) -> float:
        """|sum - (logit - baseline_logit)| relative to |logit - baseline_logit|; it tends to 0 with more steps."""
        difference = self.logit - self.baseline_logit
        return abs(self.sum - difference) / max(abs(difference), 1e-6)

    @property
    def is_complete(self) -> bool:
        """Whether the number of steps was sufficient."""
        return self.completeness_error <= MAX_COMPLETENESS_ERROR

    @property
    def sum(self) -> float:
        """Sum of the contributions of all pixels."""
        return float(self.values.sum(dtype=np.float64))


class IntegratedGradients:
    """The gradient.onnx of a bundle, in ONNX Runtime."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load the file; raise the errors of `open_session`, or BundleError if it has other outputs."""
        self._session = open_session(path, threads)
        if {output.name for output in self._session.get_outputs()} != {"gradient", "logit"}:
            raise BundleError(f"{path}: is no gradient file of cxr-edge; export it again")

    @classmethod
    def of_bundle(cls, bundle: Bundle, threads: int = 1) -> IntegratedGradients:
        """Check and load the gradient file of a bundle.

        Raises
        ------
        BundleError, IntegrityError
            If the bundle has no gradient file, or the file was changed.
        EngineError, MissingExtraError
            If ONNX Runtime cannot run here or is not installed.
        """
        if bundle.manifest.gradient is None:
            raise BundleError(
                f"{bundle.folder}: holds no gradient.onnx, which integrated gradients need; make a bundle that does: "
                "`cxr-edge export RUN -o BUNDLE --file model.onnx --file gradient.onnx`"
            )
        return cls(bundle.check(bundle.manifest.gradient), threads)

    def explain(self, pixels: Gray, max_steps: int = MAX_STEPS, baseline: str = BASELINES[0]) -> Attribution:
        r"""Attribute the logit to pixels (Sundararajan, Taly and Yan 2017).

        The attribution is (x - x') · ∫₀¹ ∂logit/∂x (x' + α (x - x')) dα. The trapezoid rule computes the integral. The
        number of steps is doubled, reusing earlier points, until the contributions sum to the change of the logit, or
        until `max_steps` would be exceeded.

        Parameters
        ----------
        pixels
            (H, W, 1) uint8 in [0, 255]: the input of the network.
        max_steps
            Maximum number of steps, ≥ 1. The first attempt takes `STEPS`, or `max_steps` if that is less.
        baseline
            One of `BASELINES`. With `blur` only details get attributions; with `black` dark pixels get none.
        """
        image = pixels.astype(np.float32)
        start = _baseline(image, baseline)
        steps = min(STEPS, max_steps)
        mean, logits = self._along(start, image, np.arange(steps + 1) / steps, ends=0.5)
        while True:
            values = ((image - start) * mean)[:, :, 0].astype(np.float32)
            attribution = Attribution(values, float(logits[-1]), float(logits[0]), steps)
            if attribution.is_complete or 2 * steps > max_steps:
                return attribution
            between, _ = self._along(start, image, (np.arange(steps) + 0.5) / steps)
            mean, steps = (mean + between) / 2, 2 * steps

    def _along(
        self, start: FloatArray, end: FloatArray, alphas: npt.NDArray[np.float64], ends: float = 1.0
    ) -> tuple[npt.NDArray[np.float64], FloatArray]:
        """Mean gradient over points of the path, with weight `ends` for the first and the last, and all logits."""
        weights = np.ones(len(alphas))
        weights[[0, -1]] = ends
        total, logits = np.zeros(start.shape), []
        for first in range(0, len(alphas), BATCH):
            share = alphas[first : first + BATCH, np.newaxis, np.newaxis, np.newaxis].astype(np.float32)
            gradient, logit = self._session.run(["gradient", "logit"], {"image": start + share * (end - start)})
            total += np.tensordot(weights[first : first + BATCH], gradient, 1)
            logits.append(logit)
        return total / weights.sum(), np.concatenate(logits)


def _baseline(image: FloatArray, name: str) -> FloatArray:
    if name not in BASELINES:
        raise UsageError(f"unknown baseline {name!r}; expected one of: {', '.join(BASELINES)}")
    if name == "black":
        return np.zeros_like(image)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), image.shape[1] / 10), np.float32).reshape(image.shape)


def attribution_picture(
    gray: Gray, attribution: Attribution, caption: str, lungs: FloatArray | None = None
) -> npt.NDArray[np.uint8]:
    """Draw attributions over their radiograph: red is evidence for pneumonia, blue against it.

    Parameters
    ----------
    gray
        (H, W) uint8: the decoded radiograph.
    lungs
        (h', w') float32 in [0, 1]: map of the lungs, whose outline is drawn if it is given.

    Returns
    -------
    (H', W', 3) uint8 RGB, with the layout of `gradcam.overlay`.
    """
    radiograph = scaled_radiograph(gray)
    height, width = radiograph.shape
    values = attribution.values
    smooth = cv2.GaussianBlur(values, (0, 0), SMOOTHING * values.shape[1], borderType=cv2.BORDER_CONSTANT)
    full_scale = max(float(np.quantile(np.abs(smooth), 1 - CLIPPED)), 1e-12)
    signed = np.clip(cv2.resize(smooth / full_scale, (width, height), interpolation=cv2.INTER_LINEAR), -1, 1)
    picture = _blend(radiograph, signed)
    if lungs is not None:
        draw_outline(picture, lungs)
    return np.vstack([text_band(caption, width), picture, _scale_band(attribution, width)])


def _blend(gray: Gray, signed: FloatArray) -> npt.NDArray[np.uint8]:
    """Blend values in [-1, 1] with gray, both (H, W); larger values are more opaque: (H, W, 3) uint8 RGB."""
    colours = np.where(signed[:, :, np.newaxis] > 0, (255, 48, 32), (48, 112, 255))
    opacity = OPACITY * np.abs(signed)[:, :, np.newaxis]
    return np.asarray(opacity * colours + (1 - opacity) * gray[:, :, np.newaxis], np.uint8)


def _scale_band(attribution: Attribution, width: int) -> npt.NDArray[np.uint8]:
    band = np.zeros((44, width, 3), np.uint8)
    ramp = np.tile(np.linspace(-1, 1, width - 16, dtype=np.float32), (10, 1))
    band[6:16, 8:-8] = _blend(np.full(ramp.shape, 96, np.uint8), ramp)
    put_text(band, "against pneumonia", 8, 35)
    logits = f"logit {attribution.logit:.1f}, of the baseline {attribution.baseline_logit:.1f}"
    put_text(band, logits, (width - 240) // 2, 35)
    put_text(band, "for pneumonia", width - 118, 35)
    return band

"""The result for one radiograph, and what its numbers say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.engines.base import FloatArray

if TYPE_CHECKING:
    from cxr_edge.runtime.explanation.attribution import Attribution

#: The kind of an image that is out of distribution but resembles no kind of outlier.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The result for one radiograph.

    Attributes
    ----------
    label
        `PNEUMONIA` if `probability` ≥ `threshold`, else `NORMAL` (the manifest's classes). At a three-way operating
        point, `UNSURE` if `probability` is below `threshold` but not below `rule_out`.
    probability
        Probability of pneumonia in [0, 1], after temperature scaling.
    logit
        Logit before temperature scaling.
    operating_point, threshold
        Name and threshold of the decision rule.
    rule_out
        Lower threshold of a three-way operating point; None if there are two answers.
    heatmap
        (7, 7) float32 ≥ 0: Grad-CAM, the positive contribution of each cell to the logit.
    novelty
        Distance of the features of the image from the training set.
    in_distribution
        Whether the novelty is within the range of 99 % of held-out radiographs. If not, do not rely on the decision.
    unlike
        None if the image is in distribution. Otherwise the kind of image that it resembles (one of the manifest's
        `novelty_kinds`), or `unknown`.
    beyond
        (M,) float32 ≥ 0: the part of the novelty towards each of the manifest's `novelty_kinds`. None if the model
        names no kinds.
    lungs
        (28, 28) float32 in [0, 1]: probability that a tile of the image belongs to a lung. None if the model does not
        find the lungs; then the following two are None as well.
    lungs_found
        `both`, `one` or `none`, or `cut off` if a lung reaches beyond the border of the image.
    evidence_in_lungs
        Share of the heatmap's evidence, in [0, 1], that lies inside the convex hull of the lungs
        (`explanation.lungs.evidence_inside`). None if the heatmap is empty.
    calibrated
        When the bundle was calibrated at a site (ISO 8601), whatever the operating point; None if it was not.
    site_probability
        Probability of pneumonia at that site, in [0, 1]; None without calibration.
    timings_ms
        Milliseconds of decode, preprocess, inference and in total. In a batch, the time of the batch divided by the
        number of images.
    """

    label: str
    probability: float
    logit: float
    operating_point: str
    threshold: float
    heatmap: FloatArray
    novelty: float
    in_distribution: bool
    timings_ms: Mapping[str, float]
    rule_out: float | None = None
    unlike: str | None = None
    beyond: FloatArray | None = None
    lungs: FloatArray | None = None
    lungs_found: str | None = None
    evidence_in_lungs: float | None = None
    calibrated: str | None = None
    site_probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Fields of a JSON line."""
        return {
            "label": self.label,
            "probability": self.probability,
            "logit": self.logit,
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "rule_out": self.rule_out,
            "novelty": self.novelty,
            "in_distribution": self.in_distribution,
            "unlike": self.unlike,
            "lungs_found": self.lungs_found,
            "evidence_in_lungs": self.evidence_in_lungs,
            "calibrated": self.calibrated,
            "site_probability": self.site_probability,
            "heatmap": [[round(float(v), 5) for v in row] for row in self.heatmap],
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
        }


@dataclass(frozen=True)
class Explanation:
    """A prediction and its picture.

    Attributes
    ----------
    prediction
        The decision.
    picture
        (H, W, 3) uint8 RGB: the heatmap over the radiograph, with its colour scale.
    attribution
        Integrated gradients, if they were requested.
    """

    prediction: Prediction
    picture: npt.NDArray[np.uint8]
    attribution: Attribution | None = None


def kind_of(beyond: FloatArray | None, novelty: float, kinds: Sequence[str]) -> str:
    """The kind of outlier that an image out of distribution resembles, or `unknown`.

    Parameters
    ----------
    beyond
        (M,) float32 ≥ 0: the part of the novelty towards each kind; None if the file does not say.
    novelty
        The length of these parts together with the residual, which belongs to no kind.
    """
    # The kinds explain the larger share of the novelty if their squares sum to more than half of its square.
    if beyond is None or not len(kinds) or 2 * float(np.sum(beyond**2)) <= novelty**2:
        return UNKNOWN
    return kinds[int(beyond.argmax())]


def describe(prediction: Prediction) -> str:
    """The text above a picture: the decision, doubts, and what is known about the lungs, in one or two lines."""
    known = prediction.unlike not in (None, UNKNOWN)
    doubt = "" if prediction.in_distribution else "  UNLIKE THE TRAINING SET" + f" ({prediction.unlike})" * known
    unsure = "" if prediction.rule_out is None else f"{prediction.rule_out:.3f}-"
    site = "" if prediction.calibrated is None else f"  calibrated {prediction.calibrated[:10]}"
    decision = (
        f"{prediction.label}  p={prediction.probability:.3f}  threshold={unsure}{prediction.threshold:.3f}{site}{doubt}"
    )
    return decision if prediction.lungs is None else f"{decision}\n{_about_lungs(prediction)}"


def _about_lungs(prediction: Prediction) -> str:
    """The line of a caption that says which lungs were found and how much of the evidence lies in them."""
    if prediction.lungs_found == "none":
        return "NO LUNGS FOUND"
    share = prediction.evidence_in_lungs
    where = "no evidence" if share is None else f"{share:.0%} of the evidence in the hull of the lungs"
    doubt = {"one": "  ONLY ONE LUNG FOUND", "cut off": "  LUNGS CUT OFF AT THE BORDER"}
    return where + doubt.get(str(prediction.lungs_found), "")

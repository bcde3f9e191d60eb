"""Distributions of the model's numbers over held-out images, which the manifest carries (`Reference`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.statistics import Labels
from cxr_edge.runtime.bundles.bundle import ClassReference, HeatmapGeometry, InputContract, Reference
from cxr_edge.runtime.bundles.manifest import QUANTILES
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.explanation.lungs import evidence_inside, find_lungs

#: Significant digits of a quantile in the manifest.
DIGITS = 4
#: Shares of the images at which the quantiles are taken, (101,): 0, 0.01, ..., 1.
LEVELS = np.linspace(0, 1, QUANTILES)

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Measured:
    """The numbers of N images, as `Prediction` has them.

    Attributes
    ----------
    logit, novelty
        (N,) float.
    evidence
        (N,) float in [0, 1], NaN where the heatmap is empty; None if the model does not find the lungs.
    whole_lungs
        (N,) bool: whether both lungs were found whole; None if the model does not find the lungs.
    """

    logit: Floats
    novelty: Floats
    evidence: Floats | None = None
    whole_lungs: npt.NDArray[np.bool_] | None = None

    def take(self, rows: npt.NDArray[Any]) -> Measured:
        """The numbers of some images: indices, or (N,) bool."""
        lungs, evidence = self.whole_lungs, self.evidence
        return Measured(
            self.logit[rows],
            self.novelty[rows],
            None if evidence is None else evidence[rows],
            None if lungs is None else lungs[rows],
        )


def measure(outputs: Outputs, geometry: HeatmapGeometry, contract: InputContract) -> Measured:
    """Find the lungs, and the evidence in them, as the runtime does."""
    if outputs.lungs is None:
        return Measured(outputs.logit, outputs.novelty)
    lungs = [find_lungs(each) for each in outputs.lungs]
    shares = [
        evidence_inside(heatmap, each.hull, geometry, contract)
        for heatmap, each in zip(outputs.heatmap, lungs, strict=True)
    ]
    evidence = np.array([np.nan if share is None else share for share in shares])
    return Measured(outputs.logit, outputs.novelty, evidence, np.array([each.found == "both" for each in lungs]))


def reference_of(
    found: Measured, labels: Labels, patients: Sequence[str], novelty_threshold: float, part: str
) -> Reference:
    """Summarise each class.

    Parameters
    ----------
    labels, patients
        Class in {0, 1} and patient of each image; both classes must occur.
    part
        Name of the part of the data set, such as `hold-out`.
    """
    names = np.array(patients)
    inside = [labels == label for label in range(len(CLASSES))]
    return Reference(
        part, tuple(_of_class(found.take(rows), len(set(names[rows])), novelty_threshold) for rows in inside)
    )


def _of_class(found: Measured, patients: int, novelty_threshold: float) -> ClassReference:
    evidence = np.zeros(0) if found.evidence is None else found.evidence[~np.isnan(found.evidence)]
    return ClassReference(
        images=len(found.logit),
        patients=patients,
        logit=_quantiles(found.logit),
        novelty=_quantiles(found.novelty),
        novel=int(np.sum(found.novelty > novelty_threshold)),
        with_evidence=len(evidence),
        evidence_in_lungs=_quantiles(evidence) if len(evidence) else None,
        lungs_missed=None if found.whole_lungs is None else int(np.sum(~found.whole_lungs)),
    )


def _quantiles(values: Floats) -> tuple[float, ...]:
    """Quantiles at 0, 1, ..., 100 %, rounded to `DIGITS` significant digits."""
    return tuple(float(f"{value:.{DIGITS}g}") for value in np.quantile(values.astype(np.float64), LEVELS))

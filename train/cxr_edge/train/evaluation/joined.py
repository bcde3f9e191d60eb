"""Joined halves: whether the evidence follows a pneumonia that is on one side only.

Evidence inside the lungs proves little about its place: a network that sees the whole image can always put it into the
same lung. So half of a pneumonia radiograph is joined to the other half of a normal one, and the evidence ought to lie
on the side of the pneumonia. This needs no box around a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.metrics import Cases, Estimate, mean_over_images
from cxr_edge.runtime.explanation.lungs import evidence_inside
from cxr_edge.train.data.halves import join, middle
from cxr_edge.train.evaluation.subject import Subject


@dataclass(frozen=True)
class Joined:
    """Radiographs joined of two halves.

    Attributes
    ----------
    pneumonia
        Side of the picture with the half of a pneumonia: `left` (the patient's right lung), `right`, or `neither`: both
        halves are normal. The last shows whether the model takes the seam for pneumonia.
    images, empty
        Number of joined radiographs, and number of those without evidence, which are left out of `evidence` and `most`.
    called
        Share that is called pneumonia. It need not be 1, because the pneumonia may have been in the other half.
    evidence, most
        Mean share of the evidence on the side of the pneumonia, and share of the radiographs with more than half of it
        there. Undefined for `neither`.
    """

    pneumonia: str
    images: int
    empty: int
    called: Estimate
    evidence: Estimate
    most: Estimate


def measure_joined(
    subject: Subject, pixels: Pixels, cases: Cases, lungs: npt.NDArray[np.bool_], seed: int = 0
) -> tuple[Joined, ...]:
    """Join each pneumonia that the model found with a random normal radiograph that it called normal.

    Parameters
    ----------
    pixels, cases
        Images with a mask, (N, H, W, 1) uint8 in [0, 255], and what the model says of them.
    lungs
        (N, H, W) bool: their masks.

    Returns
    -------
    Pneumonia on the left, on the right, and on neither side. Nothing if the model was never right about one of the
    classes.
    """
    threshold = subject.operating_points[0].threshold
    decided = cases.probability >= threshold
    found, normal = np.flatnonzero(decided & (cases.labels == 1)), np.flatnonzero(~decided & (cases.labels == 0))
    if not len(found) or not len(normal):
        return ()
    partners = np.random.default_rng(seed).choice(normal, len(found))
    middles = np.array([middle(mask) for mask in lungs])
    return (
        _measure(subject, pixels, cases, middles, "left", found, partners),
        _measure(subject, pixels, cases, middles, "right", found, partners),
        _measure(subject, pixels, cases, middles, "neither", normal, np.roll(normal, 1)),
    )


def _measure(
    subject: Subject, pixels: Pixels, cases: Cases, middles: npt.NDArray[np.int64], pneumonia: str,
    rows: npt.NDArray[np.intp], partners: npt.NDArray[np.intp],
) -> Joined:  # fmt: skip
    """Keep the half of each row on the side of the pneumonia, and take the other one from its partner."""
    patients, columns = cases.patients[rows], np.arange(pixels.shape[2])
    kept = (columns < middles[rows, np.newaxis]) == (pneumonia != "right")
    pairs = zip(pixels[rows], pixels[partners], kept, middles[rows] - middles[partners], strict=True)
    outputs = subject.run(np.stack([join(*pair) for pair in pairs]))
    called = mean_over_images((outputs.probability >= subject.operating_points[0].threshold).astype(float), patients)
    sides = np.broadcast_to(kept[:, np.newaxis], (len(rows), *pixels.shape[1:3]))
    shares = np.array(
        [evidence_inside(*each, subject.heatmap, subject.input) for each in zip(outputs.heatmap, sides, strict=True)],
        float,
    )
    full = np.isfinite(shares) & (pneumonia != "neither")
    evidence, most = (mean_over_images(s, patients[full]) for s in (shares[full], (shares[full] > 0.5).astype(float)))
    return Joined(pneumonia, len(rows), int(np.isnan(shares).sum()), called, evidence, most)

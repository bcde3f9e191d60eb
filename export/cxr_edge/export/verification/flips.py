"""Images that a file decides otherwise than the trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines import Outputs


@dataclass(frozen=True)
class Flip:
    """One image decided otherwise.

    Attributes
    ----------
    row
        Its place among the images verified on.
    reference, file
        The probability that the trained network and the file give it, in [0, 1].
    thresholds
        Operating point -> threshold, of those at which the decisions differ.
    """

    row: int
    reference: float
    file: float
    thresholds: dict[str, float]


def find_flips(outputs: Outputs, reference: Outputs, points: Sequence[OperatingPoint]) -> list[Flip]:
    """Every image that lies on another side of any threshold, the largest change first; NaN is on neither side."""
    flips = []
    for row, (mine, theirs) in enumerate(
        zip(outputs.probability.tolist(), reference.probability.tolist(), strict=True)
    ):
        crossed = {
            p.name: p.threshold for p in points if np.isnan(mine) or (mine >= p.threshold) != (theirs >= p.threshold)
        }
        if crossed:
            flips.append(Flip(row, theirs, mine, crossed))
    return sorted(flips, key=lambda flip: -abs(flip.file - flip.reference))

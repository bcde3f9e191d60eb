"""Flips: images that a file and the trained network decide differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr_edge.runtime.bundles.bundle import OperatingPoint
from cxr_edge.runtime.engines import Outputs


@dataclass(frozen=True)
class Flip:
    """One image that is decided differently.

    Attributes
    ----------
    row
        Its index among the verified images.
    reference, file
        Its probability by the trained network and by the file, in [0, 1].
    thresholds
        Operating point -> threshold (of two crossed ones the upper), where the answers differ.
    """

    row: int
    reference: float
    file: float
    thresholds: dict[str, float]


def find_flips(outputs: Outputs, reference: Outputs, points: Sequence[OperatingPoint]) -> list[Flip]:
    """Images with different answers at any operating point, the largest change first; NaN always differs."""
    flips = []
    for row, (mine, theirs) in enumerate(
        zip(outputs.probability.tolist(), reference.probability.tolist(), strict=True)
    ):
        crossed = {
            point.name: threshold
            for point in points
            for threshold in point.thresholds
            if np.isnan(mine) or (mine >= threshold) != (theirs >= threshold)
        }
        if crossed:
            flips.append(Flip(row, theirs, mine, crossed))
    return sorted(flips, key=lambda flip: -abs(flip.file - flip.reference))

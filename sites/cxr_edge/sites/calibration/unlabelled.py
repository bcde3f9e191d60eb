"""The threshold of a site without labels: in the valley between two modes of its logits.

A mixture of two normal distributions was tried first. Both classes have a long tail towards the other one, so that the
mixture splits the larger class when the smaller one is rare. A valley needs no shape of the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxr_edge.runtime.errors import CalibrationError
from cxr_edge.sites.calibration.fit import Fit, Floats, Wish

#: Fewest images.
FEWEST = 100
#: Bandwidths that are tried, and the step of the grid, in log-odds.
BANDWIDTHS, STEP = np.geomspace(0.2, 6, 35), 0.05
#: A peak rises above its surroundings by this share of the highest one; less is rounding.
PROMINENCE = 1e-3
#: Least distance of the modes in log-odds. Those of one class in two rooms are nearer.
DISTANCE = 4.0
#: Largest density in the valley, as a share of the lower mode's.
DEPTH = 0.5
#: The threshold moves only as far as needed: to the first place that is at most this much of the lower mode's height
#: above the bottom of the valley.
NEAR_BOTTOM = 0.15
#: Shares of pneumonia between which a calibration without labels is possible.
PREVALENCE = (0.05, 0.8)
INSTEAD = "label 30 images of each class and name them with --labels, or keep the shipped operating points"


@dataclass(frozen=True)
class Valley:
    """A density with two modes: grid (G,) of log-odds, density (G,), and the rows of left mode, bottom, right mode."""

    grid: Floats
    density: Floats
    left: int
    bottom: int
    right: int

    @property
    def lower_mode(self) -> float:
        """Density of the lower one of both modes."""
        return float(min(self.density[self.left], self.density[self.right]))

    @property
    def depth(self) -> float:
        """Density at the bottom as a share of the lower mode's."""
        return float(self.density[self.bottom]) / self.lower_mode


def fit_unlabelled(log_odds: Floats, wish: Wish) -> Fit:
    """Choose the threshold of a site from the log-odds of its images alone.

    The kernel density (Parzen 1962) has two modes for the bandwidths between two critical ones (Silverman 1981). At
    their geometric mean the threshold is moved from the shipped one into the valley, and no further than needed.

    Parameters
    ----------
    log_odds
        (N,) float.

    Raises
    ------
    CalibrationError
        If there are too few images, or not two modes, or they do not look like both classes, or the share of pneumonia
        is out of its range.
    """
    if len(log_odds) < FEWEST:
        raise CalibrationError(f"found {len(log_odds)} images without labels, expected {FEWEST} at least; add images")
    valley = find_valley(log_odds)
    _check(valley, wish.shipped)
    assert valley is not None
    threshold = _nearest(valley, log_odds, wish)
    prevalence = float((log_odds >= threshold).mean())
    return Fit("valley", threshold, 1.0, -threshold, prevalence)


def find_valley(log_odds: Floats) -> Valley | None:
    """The two modes of a sample and the valley between them; None if it has one mode, or three at once."""
    from scipy.ndimage import gaussian_filter1d

    margin = 2 * BANDWIDTHS[-1]
    edges = np.arange(log_odds.min() - margin, log_odds.max() + margin, STEP)
    counts, _ = np.histogram(log_odds, edges)
    grid, counts = (edges[:-1] + edges[1:]) / 2, counts / len(log_odds) / STEP

    def smooth(bandwidth: float) -> Floats:
        return np.asarray(gaussian_filter1d(counts, bandwidth / STEP, mode="constant"))

    modes = np.array([len(_peaks(smooth(bandwidth))) for bandwidth in BANDWIDTHS])
    two = np.flatnonzero(np.maximum.accumulate(modes[::-1])[::-1] == 2)
    if not len(two):
        return None
    density = smooth(float(np.sqrt(BANDWIDTHS[two[0]] * BANDWIDTHS[two[-1]])))
    peaks = _peaks(density)
    if len(peaks) != 2:
        return None
    left, right = map(int, peaks)
    return Valley(grid, density, left, left + int(density[left : right + 1].argmin()), right)


def _peaks(density: Floats) -> Floats:
    from scipy.signal import find_peaks

    return np.asarray(find_peaks(density, prominence=PROMINENCE * density.max())[0])


def _check(valley: Valley | None, shipped: float) -> None:
    """Refuse modes that are not those of both classes."""
    if valley is None:
        raise CalibrationError(f"found one mode in the logits, expected two, one for each class; {INSTEAD}")
    left, right = float(valley.grid[valley.left]), float(valley.grid[valley.right])
    if not left < shipped < right:
        raise CalibrationError(
            f"found both modes ({left:+.1f} and {right:+.1f} log-odds) on one side of the shipped threshold "
            f"({shipped:+.1f}), expected one on each side: they may be one class in two rooms; {INSTEAD}"
        )
    if right - left < DISTANCE:
        raise CalibrationError(
            f"found modes {right - left:.1f} log-odds apart, expected {DISTANCE:g} at least: they may be one class in "
            f"two rooms; {INSTEAD}"
        )
    if valley.depth > DEPTH:
        raise CalibrationError(
            f"found a density between both modes of {valley.depth:.0%} of the lower one, expected {DEPTH:.0%} at most: "
            f"the second mode may be chance; {INSTEAD}"
        )


def _nearest(valley: Valley, log_odds: Floats, wish: Wish) -> float:
    """The place in the valley nearest to the shipped threshold that agrees with the range of the prevalence."""
    inside = slice(valley.left, valley.right + 1)
    grid, density = valley.grid[inside], valley.density[inside]
    bottom = float(valley.density[valley.bottom])
    deep = density <= bottom + NEAR_BOTTOM * (valley.lower_mode - bottom)
    low, high = wish.prevalence or PREVALENCE
    share, slack = np.array([(log_odds >= place).mean() for place in grid]), 0.5 / len(log_odds)
    allowed = deep & (share >= low - slack) & (share <= high + slack)
    if not allowed.any():
        found = float((log_odds >= valley.grid[valley.bottom]).mean())
        raise CalibrationError(
            f"found {found:.0%} of the images above the valley, expected a share of pneumonia of {low:.0%} to "
            f"{high:.0%}; {'correct --prevalence, or ' if wish.prevalence else ''}{INSTEAD}"
        )
    return float(grid[allowed][np.abs(grid[allowed] - wish.shipped).argmin()])

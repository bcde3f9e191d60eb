"""Comparison of one window of decisions with the reference of the model.

The share of pneumonia differs between sites and seasons and is no drift. Therefore the reference of a window is a
mixture of the reference's classes, whose share of pneumonia is chosen so that the logits of the window fit best (the
least Kolmogorov-Smirnov distance). What remains is a change within the classes.

The p-value of a distance comes from simulated windows of the same size. Each is drawn from the reference, and compared
with a reference that is itself drawn anew with as many images as the reference has patients. So the finite reference,
the choice of the share, and several images of one patient count. Shares are compared with the beta-binomial
distribution, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.reference import DIGITS, LEVELS, Measured
from cxr_edge.runtime.bundles.bundle import ClassReference, Reference

Floats = npt.NDArray[np.floating[Any]]
#: Least and largest share of pneumonia.
Limits = tuple[float, float]

#: Number of simulated windows. With 3000 - 1, p-values are exact at multiples of 1/3000 (Davison & Hinkley 1997).
SIMULATIONS = 2999
#: Number of resampled windows for an interval, and its coverage.
RESAMPLED, COVERAGE = 200, 0.95
#: Shares of pneumonia that are tried, and the step to which a share is rounded for the simulation.
SHARES, ROUNDING = np.linspace(0, 1, 51), 0.1
#: Number of bins of the population stability index: each has the same share of the reference.
BINS = 10
#: Names of the numbers whose distribution is compared.
DISTRIBUTIONS = ("logit", "novelty", "evidence_in_lungs")


@dataclass(frozen=True)
class Distance:
    """How far the distribution of one number is from its reference.

    Attributes
    ----------
    ks
        Kolmogorov-Smirnov distance, in [0, 1].
    psi
        Population stability index (Siddiqi 2006), ≥ 0: the sum of (p - q) ln(p / q) over ten bins.
    """

    ks: float
    psi: float


@dataclass(frozen=True)
class Mixture:
    """The distribution of one number over both classes.

    Attributes
    ----------
    quantiles
        For each class (101,) float ascending; None if no image of the class has this number.
    weights
        Share of each class, with the sum 1.
    """

    quantiles: tuple[Floats | None, ...]
    weights: tuple[float, ...]

    def cdf(self, values: Floats) -> Floats:
        """Share of the reference that is at most each value: (N,) in [0, 1]."""
        return self._sum(lambda quantiles: np.interp(values, quantiles, LEVELS))

    def below(self, values: Floats) -> Floats:
        """Share of the reference that is less than each value; it differs from `cdf` where quantiles are equal."""
        return self._sum(lambda quantiles: 1 - np.interp(-values, -quantiles[::-1], LEVELS))

    def edges(self) -> Floats:
        """The inner limits of at most `BINS` bins, of about equal share."""
        places = np.sort(np.concatenate([each for each in self.quantiles if each is not None]))
        edges = np.unique(np.interp(np.linspace(0, 1, BINS + 1)[1:-1], self.cdf(places), places))
        return edges[self.cdf(edges) < 1 - 1 / (2 * BINS)]

    def _sum(self, of_class: Callable[[Floats], Floats]) -> Floats:
        parts = zip(self.quantiles, self.weights, strict=True)
        return np.asarray(sum(weight * of_class(each) for each, weight in parts if each is not None))


def mixture(reference: Reference, name: str, share: float) -> Mixture | None:
    """The reference of a number at a share of pneumonia; None if no class has it."""
    quantiles = [getattr(each, name) for each in reference.classes]
    weights = [
        weight * (each.with_evidence / each.images if name == "evidence_in_lungs" else 1.0)
        for each, weight in zip(reference.classes, (1 - share, share), strict=True)
    ]
    if not sum(weights):
        return None
    arrays = tuple(None if each is None else np.asarray(each) for each in quantiles)
    return Mixture(arrays, tuple(weight / sum(weights) for weight in weights))


def share_of_pneumonia(logit: Floats, reference: Reference, limits: Limits = (0.0, 1.0)) -> float:
    """The share, within the limits, at which the mixture is closest to the logits; the middle one of equals."""
    ordered = np.sort(logit)
    at_most, less = _empirical(ordered)
    normal, pneumonia = (np.interp(ordered, each.logit, LEVELS) for each in reference.classes)
    shares = SHARES[(limits[0] - 1e-9 <= SHARES) & (limits[1] + 1e-9 >= SHARES)]
    shares = shares if len(shares) else np.array([np.mean(limits)])
    expected = normal + shares[:, np.newaxis] * (pneumonia - normal)
    distances = np.maximum(np.abs(at_most - expected), np.abs(less - expected)).max(axis=1)
    return float(np.median(shares[distances <= distances.min() + 1e-12]))


def distances(window: Measured, reference: Reference, limits: Limits = (0.0, 1.0)) -> tuple[float, dict[str, Distance]]:
    """The share of pneumonia, and the distance of each number that window and reference have."""
    share = share_of_pneumonia(window.logit, reference, limits)
    found = {}
    for name, values in numbers(window).items():
        expected = mixture(reference, name, share)
        if expected is not None and len(values):
            found[name] = Distance(ks_distance(values, expected), stability_index(values, expected))
    return share, found


def numbers(window: Measured) -> dict[str, Floats]:
    """The numbers of a window by name; those that do not exist are left out."""
    found = {"logit": window.logit, "novelty": window.novelty}
    if window.evidence is not None:
        # As the reference, because most of the shares are close to 1 and would lie between its quantiles.
        found["evidence_in_lungs"] = np.round(window.evidence[~np.isnan(window.evidence)], DIGITS)
    return found


def ks_distance(values: Floats, expected: Mixture) -> float:
    """The largest difference between the distribution of the values and the expected one."""
    ordered = np.sort(values)
    at_most, less = _empirical(ordered)
    differences = (at_most - expected.cdf(ordered), less - expected.below(ordered))
    return float(np.abs(differences).max())


def _empirical(ordered: Floats) -> tuple[Floats, Floats]:
    """Share of N ordered values that is at most each value, and that is less: (N,) twice."""
    sides = (np.searchsorted(ordered, ordered, "right"), np.searchsorted(ordered, ordered, "left"))
    return sides[0] / len(ordered), sides[1] / len(ordered)


def stability_index(values: Floats, expected: Mixture) -> float:
    """Population stability index; half an image is added to each bin, so that none is empty."""
    edges = expected.edges()
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) + 0.5
    shares, usual = counts / counts.sum(), np.diff(expected.cdf(edges), prepend=0.0, append=1.0)
    return float(np.sum((shares - usual) * np.log(shares / usual)))


def p_value(distance: float, name: str, size: int, share: float, reference: Reference, limits: Limits) -> float:
    """Probability that a window of this size from the reference is as far away, in (0, 1]."""
    null = simulated(reference, size, round(round(share / ROUNDING) * ROUNDING, 3), limits)[name]
    return float((1 + np.sum(null >= distance - 1e-12)) / (1 + len(null)))


@lru_cache(maxsize=64)
def simulated(
    reference: Reference, size: int, share: float, limits: Limits, count: int = SIMULATIONS
) -> dict[str, Floats]:
    """Distances of simulated windows from simulated references, by number: (count,) each, always the same."""
    random = np.random.default_rng(0)
    rows: dict[str, list[float]] = {name: [] for name in DISTRIBUTIONS}
    for _ in range(count):
        window, other = draw_window(reference, size, share, random), _draw_reference(reference, random)
        fitted = share_of_pneumonia(window.logit, other, limits)
        for name, values in numbers(window).items():
            expected = mixture(other, name, fitted)
            rows[name].append(ks_distance(values, expected) if expected is not None and len(values) else 0.0)
    return {name: np.array(found) for name, found in rows.items()}


def draw_window(reference: Reference, size: int, share: float, random: np.random.Generator) -> Measured:
    """Draw a window from the reference; its numbers are independent of each other."""
    pneumonia = random.random(size) < share
    logit, novelty, evidence = np.empty(size), np.empty(size), np.full(size, np.nan)
    for rows, each in zip((~pneumonia, pneumonia), reference.classes, strict=True):
        count = int(rows.sum())
        logit[rows], novelty[rows] = _draw(each.logit, count, random), _draw(each.novelty, count, random)
        if each.evidence_in_lungs is not None:
            drawn = _draw(each.evidence_in_lungs, count, random)
            evidence[rows] = np.where(random.random(count) < each.with_evidence / each.images, drawn, np.nan)
    has_lungs = any(each.evidence_in_lungs is not None for each in reference.classes)
    return Measured(logit, novelty, evidence if has_lungs else None)


def _draw(quantiles: tuple[float, ...], count: int, random: np.random.Generator) -> Floats:
    return np.asarray(np.interp(random.random(count), LEVELS, quantiles))


def _draw_reference(reference: Reference, random: np.random.Generator) -> Reference:
    """A reference of as many independent images as the reference has patients, drawn from it."""

    def again(quantiles: tuple[float, ...] | None, images: float) -> Any:
        if quantiles is None:
            return None
        ordered = np.sort(_draw(quantiles, max(2, round(images)), random))
        return np.interp(LEVELS, np.linspace(0, 1, len(ordered)), ordered)

    def redrawn(each: ClassReference) -> ClassReference:
        share = each.with_evidence / each.images
        return replace(
            each,
            logit=again(each.logit, each.patients),
            novelty=again(each.novelty, each.patients),
            evidence_in_lungs=again(each.evidence_in_lungs, each.patients * share),
        )

    return Reference(reference.part, tuple(map(redrawn, reference.classes)))


def share_p_value(count: int, size: int, reference: Reference, field: str, share: float) -> float:
    """Probability that `size` images from the reference have as many of a kind, `novel` or `lungs_missed`, or more.

    The reference itself is a sample: the share in it has a beta distribution (Jeffreys prior), with as many images as
    it has patients.
    """
    weights = (1 - share, share)
    rates = [getattr(each, field) / each.images for each in reference.classes]
    rate = sum(weight * rate for weight, rate in zip(weights, rates, strict=True))
    spread = sum(weight**2 / each.patients for weight, each in zip(weights, reference.classes, strict=True))
    known = 1 / spread
    return _as_many(count, size, known * rate + 0.5, known * (1 - rate) + 0.5)


@lru_cache(maxsize=4096)
def _as_many(count: int, size: int, a: float, b: float) -> float:
    """Probability of `count` or more of `size` under the beta-binomial distribution."""
    from scipy.stats import betabinom

    return float(betabinom.pmf(np.arange(count, size + 1), size, a, b).sum()) if count else 1.0


def intervals(window: Measured, reference: Reference, limits: Limits) -> dict[str, tuple[Distance, Distance]]:
    """Bootstrap intervals of the distances of a window, by number: lower and upper limit."""
    random, size = np.random.default_rng(0), len(window.logit)
    again = [distances(window.take(random.integers(size, size=size)), reference, limits)[1] for _ in range(RESAMPLED)]
    ends = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
    found = {}
    for name in again[0]:
        ks, psi = (
            np.quantile([getattr(row[name], key) for row in again if name in row], ends) for key in ("ks", "psi")
        )
        found[name] = (Distance(float(ks[0]), float(psi[0])), Distance(float(ks[1]), float(psi[1])))
    return found

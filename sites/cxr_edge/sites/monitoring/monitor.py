"""Comparison of each window of decisions with the reference: what moved, and what to do.

Each window may give at most `FALSE_ALARMS` false alarms, divided over its tests (Bonferroni). The level does not
decrease from window to window, as alpha spending would: a site watches for years, and its last window has to be as
sensitive as its first. So not the number of false alarms is bounded, but their rate: one in 1 / `FALSE_ALARMS` windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.common import drift
from cxr_edge.common.drift import COVERAGE, Distance, Limits
from cxr_edge.common.reference import LEVELS, Measured
from cxr_edge.runtime.bundles.bundle import Bundle, Reference
from cxr_edge.runtime.errors import BundleError
from cxr_edge.sites.monitoring.decisions import Decision, measured

if TYPE_CHECKING:
    from cxr_edge.sites.monitoring.windows import Window

#: Largest share of windows from the reference that raise an alarm, whatever the number of tests.
FALSE_ALARMS = 0.005
#: Number of images that are named for an alarm.
NAMED = 10
#: Names of the tests, in the order of tables.
TESTS = ("logit", "novelty", "evidence_in_lungs", "novel", "lungs_missed")


@dataclass(frozen=True)
class Share:
    """A share of the images of a window: their number, and an interval (Wilson) of the share."""

    count: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, size: int) -> Share:
        """The share that `count` of `size` images are."""
        from scipy.stats import binomtest

        found = binomtest(count, size).proportion_ci(COVERAGE, "wilson")
        return cls(count, count / size, float(found.low), float(found.high))


@dataclass(frozen=True)
class Moved:
    """One number that is not as in the reference: its test, p-value, and the images to look at."""

    test: str
    p_value: float
    images: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Result:
    """The comparison of one window.

    Attributes
    ----------
    pneumonia
        Share of pneumonia at which the reference fits the logits best.
    distances, intervals
        Distance of each number from its reference, and its lower and upper limit.
    positive, novel, lungs_missed
        Shares of the window; `lungs_missed` is None if the model does not find the lungs.
    kinds
        Number of novel images of each kind that they resemble.
    p_values
        By test. `level` is the limit of each.
    positive_p
        p-value of the share of positives against all earlier windows (Fisher's exact test); 1 in the first.
    moved
        The tests whose p-value is at most `level`.
    """

    name: str
    images: int
    pneumonia: float
    distances: dict[str, Distance]
    intervals: dict[str, tuple[Distance, Distance]]
    positive: Share
    novel: Share
    kinds: dict[str, int]
    lungs_missed: Share | None
    p_values: dict[str, float]
    level: float
    positive_p: float = 1.0
    moved: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = field(default=())


def reference_in(bundle: Bundle) -> Reference:
    """The reference of a bundle; raises BundleError if it has none."""
    if bundle.manifest.reference is None:
        raise BundleError(
            f"{bundle.folder}: found no `reference` in its manifest, expected the distributions of the hold-out; train "
            "and export the model with this cxr-edge, or name another bundle with -m"
        )
    return bundle.manifest.reference


def compare(windows: Sequence[Window], bundle: Bundle, limits: Limits = (0.0, 1.0)) -> list[Result]:
    """Compare each window with the reference of the bundle.

    Parameters
    ----------
    limits
        Least and largest share of pneumonia at the site.

    Raises
    ------
    BundleError
        If the bundle has no reference.
    """
    results: list[Result] = []
    before = (0, 0)
    for window in windows:
        results.append(_compare(window, bundle, limits, before))
        before = (before[0] + results[-1].positive.count, before[1] + results[-1].images)
    return results


def p_values(window: Measured, novelty_threshold: float, reference: Reference, limits: Limits) -> dict[str, float]:
    """The p-value of each test that window and reference allow."""
    share, found = drift.distances(window, reference, limits)
    return _p_values(window, novelty_threshold, reference, limits, share, found)


def _p_values(
    window: Measured,
    novelty_threshold: float,
    reference: Reference,
    limits: Limits,
    share: float,
    found: Mapping[str, Distance],
) -> dict[str, float]:
    size = len(window.logit)
    values = {name: drift.p_value(each.ks, name, size, share, reference, limits) for name, each in found.items()}
    novel = int(np.sum(window.novelty > novelty_threshold))
    values["novel"] = drift.share_p_value(novel, size, reference, "novel", share)
    if window.whole_lungs is not None and all(each.lungs_missed is not None for each in reference.classes):
        missed = int(np.sum(~window.whole_lungs))
        values["lungs_missed"] = drift.share_p_value(missed, size, reference, "lungs_missed", share)
    return {name: values[name] for name in TESTS if name in values}


def _compare(window: Window, bundle: Bundle, limits: Limits, before: tuple[int, int]) -> Result:
    manifest, reference = bundle.manifest, reference_in(bundle)
    numbers, rows = measured(window.rows), window.rows
    share, found = drift.distances(numbers, reference, limits)
    values = _p_values(numbers, manifest.novelty_threshold, reference, limits, share, found)
    level = FALSE_ALARMS / len(values)
    novel = [row for row in rows if row.novelty > manifest.novelty_threshold]
    positive = sum(row.label == manifest.classes[1] for row in rows)
    positive_p = _changed(positive, len(rows), *before)
    lungs = numbers.whole_lungs
    moved = tuple(
        Moved(test, p, _to_look_at(test, rows, reference), ADVICE[test]) for test, p in values.items() if p <= level
    )
    return Result(
        window.name, len(rows), share, found, drift.intervals(numbers, reference, limits),
        Share.of(positive, len(rows)), Share.of(len(novel), len(rows)),
        dict(Counter(row.unlike or "unknown" for row in novel).most_common()),
        None if lungs is None else Share.of(int(np.sum(~lungs)), len(rows)),
        values, level, positive_p, moved, (POSITIVES_CHANGED,) if positive_p <= level else (),
    )  # fmt: skip


def _changed(count: int, size: int, count_before: int, size_before: int) -> float:
    """p-value of a share against that of all earlier windows; 1 if there are none."""
    from scipy.stats import fisher_exact

    if not size_before:
        return 1.0
    table = [[count, size - count], [count_before, size_before - count_before]]
    return float(fisher_exact(table).pvalue)


#: What to do about each test that is not as in the reference.
ADVICE = {
    "logit": "The logits have moved: the threshold may no longer hold. Look at these images, which are the least "
    "typical of both classes; then recalibrate: cxr-edge calibrate BUNDLE --images SITE.",
    "novelty": "The images are less (or more) like the training data than before. Look at these images; ask what "
    "changed: device, processing, projection. Label 60 images and recalibrate: cxr-edge calibrate BUNDLE --images SITE "
    "--labels site.csv.",
    "evidence_in_lungs": "The evidence lies elsewhere than in the reference. Look at the heatmaps of these images: "
    "cxr-edge explain. Do not rely on the decisions before you know why.",
    "novel": "Too many images are unlike the training data. Look at these images; remove the source of those that are "
    "no frontal radiographs of children. Do not recalibrate on them.",
    "lungs_missed": "In too many images the lungs are missing or cut off. Look at these images; check cropping, "
    "rotation and projection.",
}
POSITIVES_CHANGED = (
    "The share of positives differs from that of the earlier windows. Other patients can be the reason; this is no "
    "alarm, because the reference allows any share of pneumonia."
)


def _to_look_at(test: str, rows: Sequence[Decision], reference: Reference) -> tuple[str, ...]:
    """The images that a moved test is most about, at most `NAMED`, the most conspicuous first."""
    ordered = sorted(rows, key=lambda row: _conspicuous(test, row, reference), reverse=True)
    if test == "lungs_missed":
        ordered = [row for row in ordered if row.lungs != "both"]
    if test == "evidence_in_lungs":
        ordered = [row for row in ordered if not np.isnan(row.evidence)]
    return tuple(row.path for row in ordered[:NAMED])


def _conspicuous(test: str, row: Decision, reference: Reference) -> float:
    """A number that is larger for images that are less typical in the sense of a test."""
    if test == "logit":
        return -max(_tail(row.logit, each.logit) for each in reference.classes)
    if test == "evidence_in_lungs":
        return -row.evidence if not np.isnan(row.evidence) else -np.inf
    return row.novelty


def _tail(value: float, quantiles: tuple[float, ...]) -> float:
    """Share of the reference beyond a value, on the nearer side: 0.5 in the middle, 0 outside; less further outside."""
    below = float(np.interp(value, quantiles, LEVELS))
    outside = max(quantiles[0] - value, value - quantiles[-1], 0.0)
    return min(below, 1 - below) - outside

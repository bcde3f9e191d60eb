"""From a bundle and the images of a site to a site bundle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from scipy.special import expit

from cxr_edge.runtime.bundles.bundle import Bundle, OperatingPoint, SiteCalibration
from cxr_edge.runtime.bundles.manifest import SITE
from cxr_edge.runtime.errors import CalibrationError, UsageError
from cxr_edge.runtime.predictor import load
from cxr_edge.sites.calibration.bundle import check_target, stored_manifest, with_site, without_site, write_bundle
from cxr_edge.sites.calibration.fit import Fit, Floats, Wish, bootstrap, interval, shipped_threshold
from cxr_edge.sites.calibration.images import SiteImages, read_site
from cxr_edge.sites.calibration.labelled import fit_labelled, fit_weighted, rates
from cxr_edge.sites.calibration.unlabelled import fit_unlabelled

#: Largest shift of the threshold in log-odds. Simulated sites need less; more is another task, not another room.
LARGEST_SHIFT = 4.0


def calibrate_bundle(
    path: Path, images: Path, labels: Path | None, target: Path, prevalence: tuple[float, float] | None,
    sensitivity: float | None, is_default: bool, force: bool, tick: Callable[[], None],
) -> tuple[SiteImages, Bundle]:  # fmt: skip
    """Write a site bundle.

    Parameters
    ----------
    labels
        CSV file; None to calibrate without labels.
    prevalence
        Least and largest share of pneumonia at the site.
    sensitivity
        Least sensitivity on the labelled images.
    is_default
        Whether `site` becomes the default operating point.
    force
        Whether a shift beyond `LARGEST_SHIFT` is accepted.
    tick
        Called after each image.

    Raises
    ------
    CalibrationError, DataError, UsageError, BundleError
        If no threshold can be chosen from these images, or they, the arguments or the bundle cannot be used.
    """
    check_target(path, target)
    if sensitivity is not None and labels is None:
        raise UsageError("--sensitivity: needs labelled images; name them with --labels")
    with load(path) as predictor:
        _refuse_foreign_point(predictor.manifest.operating_points, calibrated=predictor.manifest.site is not None)
        site = read_site(predictor, images, labels, tick)
    bundle = Bundle.open(path)
    wish = Wish(shipped_threshold(bundle.manifest), prevalence, sensitivity)
    point, record = choose(site, wish, bundle.manifest.temperature, force)
    write_bundle(bundle, with_site(stored_manifest(bundle), point, record, is_default), target)
    return site, Bundle.open(target)


def undo_calibration(path: Path, target: Path) -> None:
    """Write the bundle as it was before its calibration, apart from signature and `parity.json`.

    Raises
    ------
    UsageError, BundleError
        If it is not a site bundle, or the target exists.
    """
    check_target(path, target)
    bundle = Bundle.open(path)
    if bundle.manifest.site is None:
        raise UsageError(f"{path}: found no calibration in its manifest, so there is nothing to undo")
    write_bundle(bundle, without_site(stored_manifest(bundle)), target)


def choose(site: SiteImages, wish: Wish, temperature: float, force: bool) -> tuple[OperatingPoint, SiteCalibration]:
    """The operating point of a site and its record; CalibrationError if its shift is too large without `force`."""
    fit = fit_site(site.log_odds, site, wish)
    resampled = bootstrap(len(site.log_odds), lambda rows: _fit_again(site, rows, wish))
    if not resampled:
        raise CalibrationError("found no threshold in any bootstrap sample of the images; collect more images")
    low, high = interval([each.threshold for each in resampled])
    shift = fit.threshold - wish.shipped
    if abs(shift) > LARGEST_SHIFT and not force:
        raise CalibrationError(
            f"found a shift of the threshold by {shift:+.1f} log-odds, expected {LARGEST_SHIFT:g} at most; look at the "
            "images and labels, and repeat with --force if both are right"
        )
    record = SiteCalibration(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        method=fit.method,
        images=len(site.log_odds),
        labelled=0 if site.labels is None else len(site.labels),
        strangers=int(site.strange.sum()),
        fingerprint=site.fingerprint,
        prevalence=fit.prevalence,
        prevalence_interval=interval([each.prevalence for each in resampled]),
        threshold_interval=(float(expit(low)), float(expit(high))),
        shift=shift,
        shift_interval=(low - wish.shipped, high - wish.shipped),
        largest_shift=LARGEST_SHIFT,
        forced=abs(shift) > LARGEST_SHIFT,
        slope=fit.slope / temperature,
        bias=fit.bias,
    )
    return OperatingPoint(SITE, float(expit(fit.threshold)), _rule(site, fit, wish)), record


def fit_site(log_odds: Floats, site: SiteImages, wish: Wish) -> Fit:
    """Fit with labels if there are any."""
    if site.labels is None:
        return fit_unlabelled(log_odds, wish)
    return fit_labelled(log_odds, site.labels, wish)


def _fit_again(site: SiteImages, rows: np.ndarray, wish: Wish) -> Fit | None:
    """The fit of a bootstrap sample; None if it has no valley or only one class."""
    try:
        if site.labels is None:
            return fit_unlabelled(site.log_odds[rows], wish)
        both = 0 < site.labels[rows].mean() < 1
        return fit_weighted(site.log_odds[rows], site.labels[rows], wish) if both else None
    except CalibrationError:
        return None


def _rule(site: SiteImages, fit: Fit, wish: Wish) -> str:
    """How the threshold was chosen, in words."""
    if site.labels is None:
        return f"in the valley between both modes of {len(site.log_odds)} images without labels"
    labels, threshold = site.labels, fit.threshold
    floor = "" if wish.sensitivity is None else f", with sensitivity ≥ {wish.sensitivity:.0%} on them"
    found = rates(site.log_odds, labels, threshold)
    again = bootstrap(len(labels), lambda rows: _rates_if_both(site.log_odds[rows], labels[rows], threshold))
    (s0, s1), (p0, p1) = (interval([each[column] for each in again]) for column in (0, 1))
    return (
        f"probability 0.5 after {fit.method} of {len(labels)} labelled images{floor}; on them sensitivity "
        f"{found[0]:.3f} ({s0:.3f}–{s1:.3f}), specificity {found[1]:.3f} ({p0:.3f}–{p1:.3f})"
    )


def _rates_if_both(log_odds: Floats, labels: np.ndarray, threshold: float) -> tuple[float, float] | None:
    return rates(log_odds, labels, threshold) if 0 < labels.mean() < 1 else None


def _refuse_foreign_point(points: tuple[OperatingPoint, ...], calibrated: bool) -> None:
    if not calibrated and any(point.name == SITE for point in points):
        raise UsageError(
            f"found an operating point {SITE!r} that `calibrate` did not make, expected none of this name; rename it "
            "in training and export the run again"
        )

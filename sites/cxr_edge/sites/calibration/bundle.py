"""Writing of a site bundle, and the way back. Model files are copied as they are; only the manifest's facts change."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from cxr_edge.runtime.bundles.bundle import MANIFEST, PARITY, Bundle, Manifest, OperatingPoint, SiteCalibration
from cxr_edge.runtime.bundles.manifest import CARD, SCHEMA_VERSION, SIGNATURE, SITE
from cxr_edge.runtime.errors import UsageError
from cxr_edge.runtime.files import naming

#: The result of `verify` and the signature hold for the old thresholds only.
LEFT_OUT = (PARITY, SIGNATURE, "*.partial")
HEADING = "\n## Calibrated at a site\n"


def check_target(bundle: Path, target: Path) -> None:
    """Refuse a target that exists or lies in the bundle, and a lone file."""
    if bundle.is_file():
        raise UsageError(
            f"{bundle}: found a file, expected a bundle folder, because a lone file has its thresholds sealed inside; "
            "name the folder of its bundle"
        )
    if target.exists():
        raise UsageError(f"-o {target}: exists; name a new folder, so that no bundle is overwritten")
    if bundle.resolve() in target.resolve().parents:
        raise UsageError(f"-o {target}: lies in {bundle}; name a folder outside the bundle, which stays untouched")


def with_site(manifest: Manifest, point: OperatingPoint, record: SiteCalibration, is_default: bool) -> Manifest:
    """Add the operating point of a site, in place of an earlier one; the shipped ones stay as they are."""
    shipped = without_site(manifest).operating_points
    points = (point, *shipped) if is_default else (*shipped, point)
    return replace(manifest, operating_points=points, site=record, schema_version=SCHEMA_VERSION)


def without_site(manifest: Manifest) -> Manifest:
    """Remove what a calibration added."""
    shipped = tuple(point for point in manifest.operating_points if point.name != SITE)
    return replace(manifest, operating_points=shipped, site=None)


def write_bundle(bundle: Bundle, manifest: Manifest, target: Path) -> None:
    """Copy a bundle with another manifest. The folder appears only when it is complete.

    Raises
    ------
    IntegrityError
        If a file of the bundle was changed.
    OutputError
        If the target cannot be written.
    """
    for file in bundle.manifest.all_files:
        bundle.check(file)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(bundle.folder, partial, ignore=shutil.ignore_patterns(*LEFT_OUT))
            (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            _write_card(partial / CARD, manifest)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def stored_manifest(bundle: Bundle) -> Manifest:
    """The manifest as it is on disk, without the TensorRT plans that `Bundle.open` adds."""
    return Manifest.from_json((bundle.folder / MANIFEST).read_bytes(), str(bundle.folder / MANIFEST))


def _write_card(path: Path, manifest: Manifest) -> None:
    """Replace the section of the model card about the site."""
    text = path.read_text(encoding="utf-8").partition(HEADING)[0] if path.is_file() else f"# {manifest.name}\n"
    path.write_text(text + (_section(manifest) if manifest.site else ""), encoding="utf-8")


def _section(manifest: Manifest) -> str:
    site, point = manifest.site, manifest.operating_point(SITE)
    assert site is not None
    low, high = site.prevalence_interval
    return (
        f"{HEADING}\nOn {site.date} from {site.images} images ({site.labelled} labelled, {site.strangers} unlike the "
        f"training set), fingerprint `{site.fingerprint}`.\n\n- Operating point `{SITE}`: {point.rule}, {point.chosen}"
        f"\n- Method: {site.method}; prevalence {site.prevalence:.2f} ({low:.2f}–{high:.2f})\n- The threshold moved by "
        f"{site.shift:+.2f} log-odds; the bound is {site.largest_shift:g}{', exceeded with --force' * site.forced}.\n"
        f"- Probability at the site: sigmoid({site.slope:.4f} · logit {site.bias:+.4f})\n\nThe figures above were "
        "measured at the shipped operating points, not at this site. `cxr-edge calibrate --undo` removes this section "
        "and the operating point.\n"
    )

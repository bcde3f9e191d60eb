"""Export of a run to a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from cxr_edge.common.pages import render_page
from cxr_edge.common.run import Run
from cxr_edge.export.conversion.formats import BY_NAME, Format
from cxr_edge.export.conversion.golden import write_golden
from cxr_edge.export.conversion.provenance import calibration_images, manifest_of
from cxr_edge.export.conversion.source import Source
from cxr_edge.runtime.bundles.bundle import ENGINE_OF_SUFFIX, MANIFEST, Manifest, ModelFile, sha256
from cxr_edge.runtime.bundles.facts import PLACEHOLDER
from cxr_edge.runtime.bundles.manifest import CARD
from cxr_edge.runtime.errors import UsageError


def build_bundle(
    run_folder: Path,
    bundle: Path,
    calib: Path | None,
    names: Collection[str],
    calib_images: int,
    step: Callable[[str], None],
) -> Manifest:
    """Export a run to a bundle folder. The folder appears only when all its files are complete.

    Parameters
    ----------
    calib
        Data set that sets the int8 ranges. Images of patients that the run held out are not used.
    names
        Names of the files to write, out of `formats.FORMATS`.
    calib_images
        Number of calibration images.
    step
        Called with the name of each file before it is written.

    Raises
    ------
    BundleError, DataError, UsageError
        If the run, the calibration set or the target folder cannot be used.
    """
    run = Run.open(run_folder)
    if bundle.exists() and not (bundle / MANIFEST).is_file() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise UsageError(f"{bundle}: exists and is not a bundle; choose another folder for -o")
    formats = [BY_NAME[name] for name in names]
    calibrated = any(row.calibrated for row in formats)
    calibration = calibration_images(run, calib, calib_images) if calibrated else []
    facts = manifest_of(run, bundle, calibration)
    source = Source(run, facts.input, calibration)

    partial = bundle.with_name(bundle.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = []
    for row in formats:
        step(row.name)
        files.append(_write(row, source, facts, partial))
    manifest = _list_files(facts, files)
    if runnable := [file for file in manifest.files if file.engine == "litert"]:
        write_golden(partial, runnable, facts)
    (partial / MANIFEST).write_text(manifest.to_json())
    (partial / CARD).write_text(model_card(manifest))
    shutil.rmtree(bundle, ignore_errors=True)
    partial.rename(bundle)
    return manifest


def _write(row: Format, source: Source, facts: Manifest, folder: Path) -> ModelFile:
    path = folder / row.name
    # The facts inside a file cannot hold the hash of the whole file. A digest of the rest replaces the placeholder.
    itself = ModelFile(row.name, ENGINE_OF_SUFFIX[row.suffix], row.precision, PLACEHOLDER, 0)
    row.write(source, replace(facts, files=(itself,)), path)
    return replace(itself, sha256=sha256(path), bytes=path.stat().st_size)


def _list_files(facts: Manifest, written: Sequence[ModelFile]) -> Manifest:
    """The manifest with each file in the field of its role."""
    roles: dict[str, list[ModelFile]] = {"files": [], "companions": [], "gradient": []}
    for file in written:
        roles[BY_NAME[file.path].role].append(file)
    return replace(
        facts,
        files=tuple(roles["files"]),
        companions=tuple(roles["companions"]),
        gradient=next(iter(roles["gradient"]), None),
    )


def model_card(manifest: Manifest) -> str:
    """Markdown that says what the model is for, how it was trained, and how it performed."""
    metrics = manifest.training["metrics"]
    parts = {part: metrics[part] for part in ("validation", "holdout") if part in metrics}
    return render_page("cxr_edge.export", "model_card.md.j2", manifest=manifest, parts=parts)

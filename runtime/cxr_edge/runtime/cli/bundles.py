"""The commands `cxr-edge inspect` and `cxr-edge sign`.

`--help` imports this module, so functions import slow modules only when they need them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cxr_edge.runtime.cli.console import Row, emit, output_format, trusted_option
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, IntegrityError

if TYPE_CHECKING:
    from cxr_edge.runtime.bundles.bundle import Bundle, Manifest, ModelFile, SiteCalibration


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@trusted_option
@click.option("--bom", is_flag=True, help="Print the bill of materials (CycloneDX ML-BOM, JSON).")
@output_format("table", "json")
def inspect(bundle: Path | None, trusted: Path | None, bom: bool, format: str) -> None:
    """Show the manifest of a bundle or lone model file, and check the files against it.

    Without BUNDLE it shows the packaged model. It exits with 1 if a file was changed.

    \b
      cxr-edge inspect bundle
      cxr-edge inspect bundle --trusted key.pub                 # exit 2 if the signature is missing or invalid
      cxr-edge inspect bundle --bom > bom.json
    """
    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.predictor import packaged_model

    opened = Bundle.open(bundle or packaged_model(), trusted)
    if bom:
        from cxr_edge.runtime.bundles.bom import bill_of_materials

        emit(bill_of_materials(opened.manifest), "json")
        return
    rows = [_checked(opened, file) for file in opened.manifest.all_files]
    signature = _signature(opened, trusted)
    if format == "json":
        emit(json.loads(opened.manifest.to_json()) | {"signature": signature, "checks": rows}, format)
    else:
        click.echo(_summary(opened.manifest, signature))
        emit(rows, format)
    if any(row["content"] != "intact" for row in rows):
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _checked(bundle: Bundle, file: ModelFile) -> Row:
    """The row of a file; problems are reported on standard error."""
    content = "intact"
    try:
        bundle.check(file)
    except IntegrityError as error:
        click.echo(f"error: {error}", err=True)
        content = "changed"
    if file in bundle.manifest.files and (warning := bundle.warning(file)):
        click.echo(f"warning: {warning}", err=True)
    verified = {True: "passed", False: "failed", None: "not run"}[bundle.verified(file)]
    row = {"file": file.path, "engine": file.engine, "precision": file.precision, "MB": file.bytes / 1e6}
    return row | {"content": content, "verify": verified}


def _signature(bundle: Bundle, trusted: Path | None) -> str:
    from cxr_edge.runtime.bundles.manifest import MANIFEST, SIGNATURE

    if bundle.signed is not None:
        return f"by {trusted}, over {len(bundle.signed)} files"
    signed = (bundle.folder / SIGNATURE).is_file() and (bundle.folder / MANIFEST).is_file()
    return "not checked: name the public key with --trusted" if signed else "none"


def _summary(manifest: Manifest, signature: str) -> str:
    points = ", ".join(f"{p.name} {p.rule} ({p.chosen})" for p in manifest.operating_points)
    feed = manifest.input
    return (
        f"model             {manifest.name}, exported {manifest.created}\n"
        f"input             {feed.name}: {feed.dtype} (N, {feed.height}, {feed.width}, {feed.channels}) in [0, 255]\n"
        f"classes           {', '.join(manifest.classes)}\n"
        f"operating points  {points}\n"
        f"{_about_site(manifest.site)}"
        f"signature         {signature}\n"
    )


def _about_site(site: SiteCalibration | None) -> str:
    """The lines about the calibration at a site."""
    if site is None:
        return ""
    low, high = site.prevalence_interval
    return (
        f"calibrated        {site.date}, {site.method}, {site.images} images ({site.labelled} labelled), "
        f"fingerprint {site.fingerprint[:16]}…\n"
        f"                  prevalence {site.prevalence:.2f} ({low:.2f}–{high:.2f}), threshold moved by "
        f"{site.shift:+.2f} log-odds (bound {site.largest_shift:g}{', --force' if site.forced else ''})\n"
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Private ECDSA key (PEM file).")
@click.option(
    "--password",
    prompt=True,
    prompt_required=False,
    hide_input=True,
    help="Password of the key. Prompts if no value is given.",
)
def sign(bundle: Path, key: Path, password: str | None) -> None:
    """Sign every file of a bundle with a private key; write model.sig into the bundle.

    With the public key, users can check that nothing was changed, including the thresholds: by --trusted of predict,
    explain and inspect, or by load(..., trusted=key) in Python. Sign last, after verify and after building a TensorRT
    plan.

    \b
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
      cxr-edge sign bundle --key key.pem
      cxr-edge predict -m bundle --trusted key.pub xray.jpeg
    """
    from cxr_edge.runtime.bundles import signing
    from cxr_edge.runtime.bundles.bundle import Bundle

    path = signing.sign(Bundle.open(bundle), key, password)
    click.echo(f"signed: {path}")

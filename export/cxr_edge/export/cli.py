"""`cxr-edge export` and `cxr-edge verify`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.export.conversion.formats import BY_NAME, FILES, FORMATS, PRECISIONS
from cxr_edge.runtime.cli.console import emit, output_format, table
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, MissingExtraError, UsageError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.export.verification.verify import Verification
    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.engines.tensorrt import PlanOptions

#: What `--format` offers. TensorRT plans and sites are no rows of `FORMATS`, because they are made from a bundle.
SUFFIXES = (*dict.fromkeys(row.suffix.removeprefix(".") for row in FORMATS), "tensorrt", "web")


PATH = click.Path(path_type=Path)
several = partial(click.option, multiple=True, show_default=True)
number = partial(click.option, type=click.IntRange(1), show_default=True)


@click.command()
@click.argument("source", type=PATH, metavar="RUN|BUNDLE")
@click.option("-o", "--output", "bundle", type=PATH, help="Bundle folder to write, or the folder of the site.")
@click.option("--calib", type=PATH, metavar="DATA", help="Radiographs that set the int8 ranges.")
@number("--calib-images", default=200, help="Number of calibration images.")
@several("--format", "formats", type=click.Choice(SUFFIXES), default=("onnx", "tflite"), help="Formats to write.")
@several("--precision", "precisions", type=click.Choice(PRECISIONS), default=PRECISIONS, help="Precisions to write.")
@several("--file", "names", type=click.Choice(tuple(BY_NAME)), help="Files to write, instead of the two above.")
@number("--max-batch", default=1, help="TensorRT: largest batch size.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: later releases can run the plan too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: every GPU since Ampere can run the plan too.")
def export(
    source: Path,
    bundle: Path | None,
    calib: Path | None,
    calib_images: int,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    names: tuple[str, ...],
    **plan_options: Any,
) -> None:
    """Export a trained RUN to a bundle of ONNX and TFLite files.

    A TensorRT plan runs only on the machine where it is built: copy the BUNDLE to the device and build the plan there.
    This needs an NVIDIA GPU and cxr-edge[tensorrt], but no training framework. With --calib, the command first checks
    that no activation overflows half precision on those radiographs; it exits with 1 if one does.

    --format web writes a static site from the BUNDLE: the page with LiteRT and the TFLite files of --precision
    (fp16 unless you name others). This needs Node.js, and npm's registry once.

    \b
      cxr-edge export runs/first -o bundle --calib chest_xray
      cxr-edge export bundle --format web -o site
      cxr-edge export bundle --format tensorrt                  # on the Jetson
      cxr-edge verify bundle --data chest_xray
    """
    from cxr_edge.runtime.bundles.bundle import MANIFEST, Bundle
    from cxr_edge.runtime.engines.tensorrt import PlanOptions

    options, builds_plan = PlanOptions(**plan_options), "tensorrt" in formats
    if options != PlanOptions() and not builds_plan:
        raise UsageError(
            "--max-batch, --version-compatible and --hardware-compatible apply to TensorRT only: add --format tensorrt"
        )
    if "web" in formats:
        _export_site(source, bundle, formats, precisions)
        return
    portable = [format for format in formats if format != "tensorrt"]
    if not (source / MANIFEST).is_file():
        bundle = _export_run(source, bundle, calib, calib_images, names or _choose(portable, precisions))
    elif portable:
        raise UsageError(f"{source}: found a bundle, expected a run; only --format tensorrt can be added to a bundle")
    else:
        bundle = source
    if builds_plan:
        _build_plan(Bundle.open(bundle), calib, calib_images, options)
    written = Bundle.open(bundle).manifest.all_files
    emit([{"file": f.path, "precision": f.precision, "MB": f.bytes / 1e6} for f in written], "table")
    click.echo(f"next: cxr-edge verify {bundle} --data {calib or 'DATA'}", err=True)


def _export_site(source: Path, site: Path | None, formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Write the static site of a bundle."""
    from click.core import ParameterSource
    from rich.console import Console

    from cxr_edge.export.conversion import site as sites
    from cxr_edge.runtime.bundles.bundle import Bundle

    if site is None or formats != ("web",):
        raise UsageError(
            f"{source}: --format web needs the folder of the site with -o, and no other format; run: "
            f"cxr-edge export {source} --format web -o site"
        )
    if click.get_current_context().get_parameter_source("precisions") == ParameterSource.DEFAULT:
        precisions = sites.PRECISIONS
    with Console(stderr=True).status("reading") as status:
        sites.build_site(Bundle.open(source), site, precisions, lambda name: status.update(f"writing {name}"))
    files = [path for path in sorted(site.rglob("*")) if path.is_file()]
    emit([{"file": str(f.relative_to(site)), "MB": f.stat().st_size / 1e6} for f in files], "table")
    click.echo(f"next: cxr-edge verify {site} --data DATA", err=True)


def _choose(formats: Sequence[str], precisions: Collection[str]) -> list[str]:
    """Names of the files of these formats and precisions; without a format ONNX, because plans are built from it."""
    suffixes = {f".{format}" for format in formats or ["onnx"]}
    return [name for name in FILES if BY_NAME[name].suffix in suffixes and BY_NAME[name].precision in precisions]


def _export_run(run: Path, bundle: Path | None, calib: Path | None, calib_images: int, names: Sequence[str]) -> Path:
    """Write the bundle of a run and return its folder."""
    from cxr_edge.common.backend import import_keras_quietly

    if bundle is None:
        raise UsageError(f"{run}: found no bundle folder to write; name one with -o")
    import_keras_quietly()
    from rich.console import Console

    from cxr_edge.export.conversion.build import build_bundle

    with Console(stderr=True).status("reading") as status:
        build_bundle(run, bundle, calib, names, calib_images, step=lambda name: status.update(f"writing {name}"))
    return bundle


def _build_plan(bundle: Bundle, data: Path | None, count: int, options: PlanOptions) -> None:
    from cxr_edge.export.conversion.tensorrt import build_plan
    from cxr_edge.runtime.engines.tensorrt import this_target

    this_target()  # reports a missing GPU or package before the overflow check
    if data is None:
        click.echo("fp16 overflow was not checked: name radiographs with --calib", err=True)
    else:
        _check_overflow(bundle, data, count)
    click.echo("building a TensorRT plan for this machine; this takes minutes. NVIDIA's equivalent command:", err=True)
    build_plan(bundle, options, say=partial(click.echo, err=True))


def _check_overflow(bundle: Bundle, data: Path, count: int) -> None:
    """Print the largest activations; exit with 1 if one overflows half precision."""
    from cxr_edge.export.verification.overflow import LARGEST, check_overflow

    try:
        magnitudes = check_overflow(bundle, data, count)
    except MissingExtraError as error:
        click.echo(f"fp16 overflow was not checked: {error}", err=True)
        return
    rows = [{**asdict(m), "of 65504": f"{m.largest / LARGEST:.2%}"} for m in magnitudes[:10]]
    click.echo(f"largest activations on up to {count} radiographs:\n{table(rows)}", err=True)
    if overflowing := sum(m.overflows for m in magnitudes):
        click.echo(
            f"{overflowing} tensors come too close to the largest value of half precision; no plan was built", err=True
        )
        click.get_current_context().exit(EXIT_CHECK_FAILED)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True, metavar="DATA", help="Labelled radiographs.")
@click.option("--run", type=PATH, help="Run that the bundle was exported from.  [default: the recorded folder]")
@click.option("--gates", "gates_file", type=PATH, help="gates.toml with your own limits.")
@click.option("--limit", type=click.IntRange(2), help="Number of images, evenly spread.  [default: all]")
@click.option("--held-out", is_flag=True, help="Use only patients held out of training and of int8 calibration.")
@click.option("--layers", is_flag=True, help="Measure the error of every tensor, to find where its error begins.")
@click.option("--report", type=PATH, metavar="PAGE.html", help="Write an HTML page with the flipped images.")
@click.option("--markdown", type=PATH, help="Write the table as Markdown.  [also: to $GITHUB_STEP_SUMMARY]")
@click.option("--junit", type=PATH, help="Write the result of each file and limit as JUnit XML.")
@output_format("table", "json")
def verify(
    bundle: Path,
    data: Path,
    run: Path | None,
    gates_file: Path | None,
    limit: int | None,
    held_out: bool,
    layers: bool,
    report: Path | None,
    markdown: Path | None,
    junit: Path | None,
    format: str,
) -> None:
    """Check that each file of BUNDLE decides as the trained network does; exit with 1 if one does not.

    BUNDLE may also be a site of `export --format web`. Its page then runs in the Chromium of this machine, from the
    image file on; this needs cxr-edge[web]. The result is written to SITE.parity.json beside the site.

    Every file is run by its real engine on every image of DATA, including decoding and resizing, and compared with the
    Keras network and its GradientTape Grad-CAM. The command writes parity.json into the bundle.

    \b
      cxr-edge verify bundle --data chest_xray --limit 1000
      cxr-edge verify bundle --data chest_xray --held-out
      cxr-edge verify bundle --data chest_xray --limit 300 --layers --report verify.html
    """
    from cxr_edge.export.conversion.site import is_site
    from cxr_edge.export.verification.gates import load_gates
    from cxr_edge.runtime.files import check_writable

    gates = load_gates(gates_file)
    for output in (report, markdown, junit):
        if output:
            check_writable(output)
    verification = (_verify_site if is_site(bundle) else _verify_bundle)(
        bundle, layers, data=data, run_folder=run, gates=gates, limit=limit, held_out=held_out
    )
    _write_reports(verification, report, markdown, junit)
    _print_verification(verification, format)
    if not verification.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _verify_bundle(bundle: Path, layers: bool, **options: Any) -> Verification:
    from cxr_edge.common.backend import import_keras_quietly
    from cxr_edge.export.verification.verify import open_for_verification, verify_bundle
    from cxr_edge.runtime.bundles.bundle import PARITY
    from cxr_edge.runtime.bundles.manifest import SIGNATURE

    is_signed = (open_for_verification(bundle).folder / SIGNATURE).is_file()
    import_keras_quietly()
    from cxr_edge.common.progress import stages

    with stages() as progress:
        verification = verify_bundle(bundle, progress=progress, layers=layers, **options)
    if is_signed:
        click.echo(f"{PARITY} was rewritten, so the signature is no longer valid: run cxr-edge sign {bundle}", err=True)
    return verification


def _verify_site(site: Path, layers: bool, **options: Any) -> Verification:
    from cxr_edge.common.backend import import_keras_quietly

    if layers:
        raise UsageError(f"{site}: --layers needs a bundle, because a page does not show its tensors; leave it out")
    import_keras_quietly()
    from cxr_edge.common.progress import stages
    from cxr_edge.export.verification.browser import verify_site

    with stages() as progress:
        return verify_site(site, progress=progress, **options)


def _print_verification(verification: Verification, format: str) -> None:
    from cxr_edge.common.progress import table_console
    from cxr_edge.export.verification.report import print_verification

    if format == "json":
        emit(verification.to_dict(), format)
    else:
        print_verification(verification, table_console())


def _write_reports(verification: Verification, page: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from cxr_edge.export.verification import junit as junit_xml
    from cxr_edge.export.verification import report
    from cxr_edge.export.verification.page import write_page

    if page:
        write_page(page, verification)
    if markdown:
        write_atomically(markdown, report.markdown(verification))
    if job_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(job_summary).open("a", encoding="utf-8") as file:  # other steps append to it too
            file.write(report.markdown(verification))
    if junit:
        write_atomically(junit, junit_xml.junit(verification))

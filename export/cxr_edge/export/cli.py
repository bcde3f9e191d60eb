"""`cxr-edge export` and `cxr-edge verify`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cxr_edge.export.conversion.formats import COMPANIONS, FILES
from cxr_edge.runtime.choices import PRECISIONS
from cxr_edge.runtime.cli.console import emit, output_format, table
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, MissingExtraError, UsageError
from cxr_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from cxr_edge.export.verification.verify import Verification
    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.engines.tensorrt import PlanOptions

FORMATS = ("onnx", "tflite", "tensorrt")


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN|BUNDLE")
@click.option("-o", "--output", "bundle", type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--calib", type=click.Path(path_type=Path), metavar="DATA", help="Radiographs that set the int8 ranges.")
@click.option("--calib-images", type=click.IntRange(1), default=200, show_default=True, help="How many of them.")
@click.option(
    "--format", "formats", type=click.Choice(FORMATS), multiple=True, default=("onnx", "tflite"), show_default=True
)
@click.option(
    "--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, default=PRECISIONS, show_default=True
)
@click.option(
    "--file",
    "names",
    type=click.Choice([*FILES, *COMPANIONS]),
    multiple=True,
    help="Write just this; instead of the two above.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), default=1, show_default=True, help="TensorRT: most images at once."
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: let later releases run the plan too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: let every GPU from Ampere on run the plan too.")
def export(
    run: Path,
    bundle: Path | None,
    calib: Path | None,
    calib_images: int,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    names: tuple[str, ...],
    max_batch: int,
    version_compatible: bool,
    hardware_compatible: bool,
) -> None:
    """Export a trained RUN to a bundle of ONNX and TFLite files.

    TensorRT plans run only where they are built: on the device, build one into a BUNDLE that was copied there. That
    needs an NVIDIA GPU and cxr-edge[tensorrt], but no training framework. With --calib it first makes sure that no
    activation leaves half precision on those radiographs; exit 1 if one does.

    \b
      cxr-edge export runs/first -o bundle --calib chest_xray
      cxr-edge export bundle --format tensorrt                  # on the Jetson
      cxr-edge verify bundle --data chest_xray
    """
    from cxr_edge.runtime.bundles.bundle import MANIFEST, Bundle
    from cxr_edge.runtime.engines.tensorrt import PlanOptions

    others = [f for f in formats if f != "tensorrt"]
    if "tensorrt" not in formats and (max_batch > 1 or version_compatible or hardware_compatible):
        raise UsageError(
            "--max-batch, --version-compatible and --hardware-compatible are TensorRT's: add --format tensorrt"
        )
    is_bundle = (run / MANIFEST).is_file()
    if others and is_bundle:
        raise UsageError(f"{run}: is a bundle; into a bundle only --format tensorrt can be built")
    if not is_bundle:
        if bundle is None:
            raise UsageError("name the bundle folder to write with -o")
        # A TensorRT plan is built from ONNX.
        suffixes = {f".{f}" for f in others or ["onnx"]}
        chosen = [name for name, p in FILES.items() if Path(name).suffix in suffixes and p in precisions]
        _export_files(run, bundle, calib, names or chosen, calib_images)
    target = run if is_bundle else bundle
    assert target is not None
    if "tensorrt" in formats:
        _build_plan(
            Bundle.open(target), calib, calib_images, PlanOptions(max_batch, version_compatible, hardware_compatible)
        )
    written = Bundle.open(target).manifest.all_files
    rows = [{"file": f.path, "precision": f.precision, "MB": f.bytes / 1e6} for f in written]
    emit(rows, "table")
    click.echo(f"next: cxr-edge verify {target} --data {calib or 'DATA'}", err=True)


def _build_plan(bundle: Bundle, data: Path | None, count: int, options: PlanOptions) -> None:
    from cxr_edge.export.conversion.tensorrt import build_plan
    from cxr_edge.runtime.engines.tensorrt import this_target

    this_target()  # say first what is missing here
    if data is None:
        click.echo("fp16 overflow not checked: name radiographs with --calib", err=True)
    else:
        _check_overflow(bundle, data, count)
    click.echo("building a TensorRT plan for this machine; this takes minutes. The same by NVIDIA's tool:", err=True)
    build_plan(bundle, options, say=partial(click.echo, err=True))


def _check_overflow(bundle: Bundle, data: Path, count: int) -> None:
    """Print the largest activations; exit 1 if one does not fit into half precision."""
    from cxr_edge.export.verification.overflow import LARGEST, check_overflow

    try:
        magnitudes = check_overflow(bundle, data, count)
    except MissingExtraError as error:
        click.echo(f"fp16 overflow not checked: {error}", err=True)
        return
    rows = [{**asdict(m), "of 65504": f"{m.largest / LARGEST:.2%}"} for m in magnitudes[:10]]
    click.echo(f"largest activations on {count} radiographs at most:\n{table(rows)}", err=True)
    if worst := [m for m in magnitudes if m.overflows]:
        click.echo(f"{len(worst)} tensors come too near to the end of half precision; no plan built", err=True)
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _export_files(run: Path, bundle: Path, calib: Path | None, names: Sequence[str], calib_images: int) -> None:
    from cxr_edge.common.backend import import_keras_quietly

    import_keras_quietly()
    from rich.console import Console

    from cxr_edge.export.conversion.build import build_bundle

    with Console(stderr=True).status("reading") as status:
        build_bundle(run, bundle, calib, names, calib_images, step=lambda name: status.update(f"writing {name}"))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DATA", help="Labelled radiographs.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run it was exported from.  [default: as recorded]")
@click.option("--gates", "gates_file", type=click.Path(path_type=Path), help="gates.toml: limits of your own.")
@click.option("--limit", type=click.IntRange(2), help="Take this many images, evenly spread, instead of all.")
@click.option(
    "--held-out", is_flag=True, help="Only patients that the run held out of training, and so of int8's ranges."
)
@click.option("--layers", is_flag=True, help="Find where a file leaves its reference: the error of every tensor.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="PAGE.html", help="Write a page with the flipped images."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Write the table as Markdown.  [also: to $GITHUB_STEP_SUMMARY]"
)
@click.option("--junit", type=click.Path(path_type=Path), help="Write each file and limit as JUnit XML.")
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
    """Prove that each file of BUNDLE decides as the trained network does; exit 1 if one does not.

    Every file is run by its real engine over every image of DATA, from the image file on, and compared with the Keras
    network and its GradientTape Grad-CAM. Writes parity.json into the bundle.

    \b
      cxr-edge verify bundle --data chest_xray --limit 1000
      cxr-edge verify bundle --data chest_xray --held-out
      cxr-edge verify bundle --data chest_xray --limit 300 --layers --report verify.html
    """
    from cxr_edge.common.backend import import_keras_quietly
    from cxr_edge.export.verification.gates import load_gates
    from cxr_edge.export.verification.verify import open_for_verification, verify_bundle
    from cxr_edge.runtime.bundles.bundle import PARITY
    from cxr_edge.runtime.bundles.signing import SIGNATURE
    from cxr_edge.runtime.files import check_writable

    gates = load_gates(gates_file)
    is_signed = (open_for_verification(bundle).folder / SIGNATURE).is_file()
    for output in (report, markdown, junit):
        if output:
            check_writable(output)
    import_keras_quietly()
    from cxr_edge.common.progress import stages, table_console
    from cxr_edge.export.verification.report import print_verification

    with stages() as progress:
        verification = verify_bundle(bundle, data, run, gates, limit, progress, layers, held_out)
    _write_reports(verification, report, markdown, junit)
    if is_signed:
        click.echo(f"{PARITY} is new, so the signature no longer holds: run cxr-edge sign {bundle}", err=True)
    if format == "json":
        emit(verification.to_dict(), format)
    else:
        print_verification(verification, table_console())
    if not verification.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _write_reports(verification: Verification, page: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from cxr_edge.export.verification import junit as junit_xml
    from cxr_edge.export.verification import report
    from cxr_edge.export.verification.page import write_page

    if page:
        write_page(page, verification)
    if markdown:
        write_atomically(markdown, report.markdown(verification))
    if job_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(job_summary).open("a", encoding="utf-8") as file:  # other steps write there too
            file.write(report.markdown(verification))
    if junit:
        write_atomically(junit, junit_xml.junit(verification))

"""`cxr-edge export` and `cxr-edge verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cxr_edge.export.build import FILES, OPTIONAL
from cxr_edge.runtime.bundle import MANIFEST, PRECISIONS, Bundle
from cxr_edge.runtime.console import emit, output_format
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, UsageError
from cxr_edge.runtime.quiet import import_keras_quietly

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
    type=click.Choice(FILES | OPTIONAL),
    multiple=True,
    help="Write just this; instead of the two above.",
)
def export(
    run: Path,
    bundle: Path | None,
    calib: Path | None,
    calib_images: int,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Export a trained RUN to a bundle of ONNX and TFLite files.

    TensorRT plans run only where they are built: on the device, build one into a BUNDLE that was copied there. That
    needs an NVIDIA GPU and cxr-edge[tensorrt], but no training framework.

    \b
      cxr-edge export runs/first -o bundle --calib chest_xray
      cxr-edge export bundle --format tensorrt                  # on the Jetson
      cxr-edge verify bundle --data chest_xray
    """
    others = [f for f in formats if f != "tensorrt"]
    is_bundle = (run / MANIFEST).is_file()
    if others and is_bundle:
        raise UsageError(f"{run}: is a bundle; into a bundle only --format tensorrt can be built")
    if not is_bundle:
        if bundle is None:
            raise UsageError("name the bundle folder to write with -o")
        # A TensorRT plan is built from ONNX.
        chosen = [name for name, (f, p) in FILES.items() if f in (others or ["onnx"]) and p in precisions]
        _export_files(run, bundle, calib, names or chosen, calib_images)
    target = run if is_bundle else bundle
    assert target is not None
    if "tensorrt" in formats:
        from cxr_edge.export.tensorrt import build_plan

        click.echo("building a TensorRT plan for this machine; this takes minutes", err=True)
        build_plan(Bundle.open(target))
    rows = [{"file": f.path, "precision": f.precision, "MB": f.bytes / 1e6} for f in Bundle.open(target).manifest.files]
    emit(rows, "table")
    click.echo(f"next: cxr-edge verify {target} --data {calib or 'DATA'}", err=True)


def _export_files(run: Path, bundle: Path, calib: Path | None, names: Sequence[str], calib_images: int) -> None:
    import_keras_quietly()
    from rich.console import Console

    from cxr_edge.export.build import build_bundle

    with Console(stderr=True).status("reading") as status:
        build_bundle(run, bundle, calib, names, calib_images, step=lambda name: status.update(f"writing {name}"))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DATA", help="Labelled radiographs.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run it was exported from.  [default: as recorded]")
@click.option("--gates", "gates_file", type=click.Path(path_type=Path), help="gates.toml: limits of your own.")
@click.option("--limit", type=click.IntRange(2), help="Take this many images, evenly spread, instead of all.")
@output_format("table", "json")
def verify(bundle: Path, data: Path, run: Path | None, gates_file: Path | None, limit: int | None, format: str) -> None:
    """Prove that each file of BUNDLE decides as the trained network does; exit 1 if one does not.

    Every file is run by its real engine over every image of DATA, from the image file on, and compared with the Keras
    network and its GradientTape Grad-CAM. Writes parity.json into the bundle.

    \b
      cxr-edge verify bundle --data chest_xray --limit 1000
    """
    from cxr_edge.export.gates import load_gates

    gates = load_gates(gates_file)
    import_keras_quietly()
    from rich.console import Console

    from cxr_edge.export.progress import stages
    from cxr_edge.export.report import print_verification
    from cxr_edge.export.verify import verify_bundle

    with stages() as progress:
        verification = verify_bundle(bundle, data, run, gates, limit, progress)
    if format == "json":
        emit(verification.to_dict(), format)
    else:
        console = Console()
        # A pipe or a log has no width; the table's numbers must not be cut there.
        print_verification(verification, console if console.is_terminal else Console(width=200))
    if not verification.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)

"""`cxr-edge predict`, `explain` and `inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from cxr_edge.runtime.attribution import BASELINES, MAX_STEPS
from cxr_edge.runtime.bundle import MANIFEST, PRECISIONS, Bundle, Manifest, ModelFile
from cxr_edge.runtime.console import Row, emit, output_format
from cxr_edge.runtime.engines import ENGINES
from cxr_edge.runtime.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_SOME_FAILED, ImageError, IntegrityError
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.folders import find_images
from cxr_edge.runtime.gradcam import encode_picture
from cxr_edge.runtime.image import ImageSource
from cxr_edge.runtime.predictor import METHODS, Explanation, Predictor, load, packaged_model
from cxr_edge.runtime.signing import SIGNATURE

F = TypeVar("F", bound=Callable[..., Any])
STDIN = "-"
#: Batches shorter than this end before a progress bar is read.
LONG_BATCH = 50


#: The option --trusted, of every command that opens a bundle to use it.
trusted_option = click.option(
    "--trusted",
    type=click.Path(path_type=Path),
    metavar="KEY.pub",
    help="Refuse the bundle unless it is signed with this key.",
)


def model_options(function: F) -> F:
    """The options that choose a model, an engine and a threshold."""
    for option in (
        trusted_option,
        click.option("--threads", type=click.IntRange(1), help="CPU threads of the engine.  [default: cores, up to 4]"),
        click.option(
            "--operating-point", metavar="NAME", help="Threshold to decide by.  [default: the manifest's first]"
        ),
        click.option("--precision", type=click.Choice(("auto", *PRECISIONS)), default="auto", show_default=True),
        click.option("--engine", type=click.Choice(("auto", *ENGINES)), default="auto", show_default=True),
        click.option("-m", "--model", "bundle", type=click.Path(), help="Bundle folder or lone model file."),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|-...")
@model_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write JSON lines here; interrupted, the same call goes on."
)
@output_format("table", "json", "jsonl", "csv")
def predict(sources: Sequence[str], output: Path | None, format: str, **model: Any) -> None:
    """Decide on radiographs: normal or pneumonia.

    IMAGE is a JPEG, PNG, TIFF, BMP, WebP or DICOM file, DIR a folder of them, - an image on standard input.

    \b
      cxr-edge predict -m bundle xray.jpeg
      cxr-edge predict -m bundle folder --format csv > decisions.csv
      cxr-edge predict -m bundle folder -o decisions.jsonl      # resumes after an interruption
    """
    predictor = load(**model)
    if output:
        _predict_to_file(predictor, sources, output)
        return
    images = [image for source in sources for image in _expand(source)]
    failed: list[str] = []
    emit(_watched(_rows(predictor, images), len(images), failed), format)
    _exit_for(failed, len(images))


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|-...")
@model_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True)
@click.option(
    "--max-steps", type=click.IntRange(1), default=MAX_STEPS, show_default=True, help="Of ig: along the path."
)
@click.option(
    "--baseline", type=click.Choice(BASELINES), default=BASELINES[0], show_default=True, help="Of ig: where it starts."
)
@output_format("table", "json", "jsonl", "csv")
def explain(
    sources: Sequence[str], output: Path, method: str, max_steps: int, baseline: str, format: str, **model: Any
) -> None:
    """Draw where a decision comes from, over each radiograph, as PNG.

    gradcam shows which regions speak for pneumonia; ig (integrated gradients) which pixels do, and which speak against
    it. ig takes hundreds of times as long, and needs a bundle with gradient.onnx and cxr-edge[onnx].

    \b
      cxr-edge explain -m bundle xray.jpeg -o pictures
      cxr-edge explain -m bundle xray.jpeg -o pictures --method ig
    """
    predictor = load(**model)
    images = [image for source in sources for image in _expand(source)]
    failed: list[str] = []
    how = partial(predictor.explain, method=method, max_steps=max_steps, baseline=baseline)
    emit(_watched(_explain(how, images, output), len(images), failed), format)
    _exit_for(failed, len(images))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@trusted_option
@click.option("--bom", is_flag=True, help="Print what it was made of and with: a CycloneDX ML-BOM, as JSON.")
@output_format("table", "json")
def inspect(bundle: Path | None, trusted: Path | None, bom: bool, format: str) -> None:
    """Show what a bundle or a lone model file says of itself, and check its files against it.

    \b
      cxr-edge inspect bundle
      cxr-edge inspect bundle --trusted key.pub                 # exit 2 if the signature is missing or bad
      cxr-edge inspect bundle --bom > bom.json
    """
    opened = Bundle.open(bundle or packaged_model(), trusted)
    if bom:
        from cxr_edge.runtime.bom import bill_of_materials

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
    """A file's row of `inspect`; what is wrong with it goes to standard error."""
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
    if bundle.signed is not None:
        return f"by {trusted}, over {len(bundle.signed)} files"
    signed = (bundle.folder / SIGNATURE).is_file() and (bundle.folder / MANIFEST).is_file()
    return "not checked: name the public key with --trusted" if signed else "none"


def _summary(manifest: Manifest, signature: str) -> str:
    points = ", ".join(f"{p.name} p ≥ {p.threshold:.4f} ({p.chosen})" for p in manifest.operating_points)
    feed = manifest.input
    return (
        f"model             {manifest.name}, exported {manifest.created}\n"
        f"input             {feed.name}: {feed.dtype} (N, {feed.height}, {feed.width}, {feed.channels}) in [0, 255]\n"
        f"classes           {', '.join(manifest.classes)}\n"
        f"operating points  {points}\n"
        f"signature         {signature}\n"
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Private ECDSA key, a PEM file.")
@click.option("--password", prompt=True, prompt_required=False, hide_input=True, help="Of the key; asked for if empty.")
def sign(bundle: Path, key: Path, password: str | None) -> None:
    """Sign every file of a bundle with a private key; writes model.sig into it.

    Whoever has the public key then knows that nothing was changed, thresholds included: --trusted of predict, explain
    and inspect, or load(..., trusted=key) in Python. Sign last: after verify, and after a TensorRT plan was built.

    \b
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
      cxr-edge sign bundle --key key.pem
      cxr-edge predict -m bundle --trusted key.pub xray.jpeg
    """
    from cxr_edge.runtime import signing

    path = signing.sign(Bundle.open(bundle), key, password)
    click.echo(f"signed: {path}")


def _rows(predictor: Predictor, images: Sequence[str]) -> Iterator[Row]:
    for path, result in zip(images, predictor.predict_many(_source(path) for path in images), strict=True):
        yield {"path": path} | (_error(result) if isinstance(result, ImageError) else result.to_dict())


def _explain(explain_one: Callable[[ImageSource], Explanation], images: Sequence[str], folder: Path) -> Iterator[Row]:
    names = _unique_stems(images)
    for path, name in zip(images, names, strict=True):
        try:
            explanation = explain_one(_source(path))
        except ImageError as error:
            yield {"path": path} | _error(error)
            continue
        picture = folder / f"{name}.png"
        write_atomically(picture, encode_picture(explanation.picture))
        row = {"path": path, "picture": str(picture)} | explanation.prediction.to_dict()
        if attribution := explanation.attribution:
            row["completeness_error"] = attribution.completeness_error
            row["attribution"] = {
                "steps": attribution.steps,
                "baseline_logit": attribution.baseline_logit,
                "sum": attribution.sum,
            }
        yield row


def _predict_to_file(predictor: Predictor, sources: Sequence[str], output: Path) -> None:
    """Append to OUTPUT.partial, going on after the rows it already has; rename when all are there."""
    images = [image for source in sources for image in _expand(source)]
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_lines(partial)
    failed = [row["path"] for row in done if "error" in row]
    todo = [image for image in images if image not in {row["path"] for row in done}]
    if done:
        click.echo(f"resuming: {len(done)} of {len(images)} are in {partial}", err=True)
    with partial.open("a") as stream:
        for row in _watched(_rows(predictor, todo), len(todo), failed):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
    partial.replace(output)
    _exit_for(failed, len(images))


def _whole_lines(partial: Path) -> list[dict[str, Any]]:
    """The rows of an interrupted run; a last line cut short is dropped from the file."""
    if not partial.is_file():
        return []
    lines = partial.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        write_atomically(partial, b"".join(whole))
    return [json.loads(line) for line in whole]


def _expand(source: str) -> list[str]:
    path = Path(source)
    if source == STDIN or not path.is_dir():
        return [source]
    found = find_images(path)
    if not found:
        raise ImageError(f"{path}: no image files in this folder")
    return [str(image) for image in found]


def _source(path: str) -> ImageSource:
    return sys.stdin.buffer.read() if path == STDIN else path


def _unique_stems(images: Sequence[str]) -> list[str]:
    """A file name for each picture: the image's stem, numbered where two are alike."""
    seen: dict[str, int] = {}
    names = []
    for image in images:
        stem = "stdin" if image == STDIN else Path(image).stem
        seen[stem] = seen.get(stem, 0) + 1
        names.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return names


def _error(error: ImageError) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _watched(rows: Iterable[Row], total: int, failed: list[str]) -> Iterator[Row]:
    """Pass rows on behind a progress bar, noting which are errors and saying so on standard error."""
    with click.progressbar(rows, total, file=sys.stderr, hidden=total < LONG_BATCH) as bar:
        for row in bar:
            if "error" in row:
                failed.append(row["path"])
                click.echo(f"error: {row['error']['message']}", err=True)
            yield row


def _exit_for(failed: Sequence[str], total: int) -> None:
    if failed:
        click.get_current_context().exit(EXIT_BAD_INPUT if total == 1 else EXIT_SOME_FAILED)

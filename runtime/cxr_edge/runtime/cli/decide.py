"""The commands `cxr-edge predict` and `cxr-edge explain`.

`--help` imports this module, so functions import numpy, OpenCV and engines only when they need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cxr_edge.runtime.choices import BASELINES, ENGINES, MAX_PIXELS, MAX_STEPS, METHODS, PRECISIONS
from cxr_edge.runtime.cli.console import Row, emit, output_format, trusted_option
from cxr_edge.runtime.errors import (
    EXIT_BAD_INPUT,
    EXIT_SOME_FAILED,
    CxrEdgeError,
    ImageError,
    UsageError,
)

if TYPE_CHECKING:
    from cxr_edge.runtime.imaging.image import ImageSource
    from cxr_edge.runtime.prediction import Explanation
    from cxr_edge.runtime.predictor import Predictor

F = TypeVar("F", bound=Callable[..., Any])
STDIN = "-"
#: Shorter batches get no progress bar.
LONG_BATCH = 50


def model_options(function: F) -> F:
    """Add the options that choose a model, an engine and a threshold."""
    for option in (
        trusted_option,
        click.option(
            "--max-pixels",
            type=click.IntRange(1),
            default=MAX_PIXELS,
            show_default=True,
            help="Refuse image files with more pixels than this.",
        ),
        click.option(
            "--operating-point",
            metavar="NAME",
            help="Operating point to decide by, such as screening or triage.  [default: the first in the manifest]",
        ),
        click.option(
            "--precision",
            metavar="NAME",
            default="auto",
            show_default=True,
            help=f"Precision of the file: {', '.join(PRECISIONS)} or another of the bundle; auto is the most exact.",
        ),
        click.option(
            "--engine",
            type=click.Choice(("auto", *ENGINES)),
            default="auto",
            show_default=True,
            help="Inference engine. auto takes the first one that is installed.",
        ),
        click.option(
            "-m",
            "--model",
            "bundle",
            type=click.Path(),
            help="Bundle folder or lone model file.  [default: the packaged model]",
        ),
    ):
        function = option(function)
    return function


threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of the engine.  [default: number of cores, up to 4]"
)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|-...")
@model_options
@threads_option
@click.option("-o", "--output", "target", type=click.Path(), metavar="FILE", help="Write the result to this file.")
@click.option(
    "--format",
    type=click.Choice(("table", "json", "jsonl", "csv")),
    help="Format of the result.  [default: table; with -o by the suffix of FILE: .csv, .json, else jsonl]",
)
def predict(sources: Sequence[str], target: str | None, format: str | None, **model: Any) -> None:
    """Classify radiographs as normal or pneumonia.

    IMAGE is a JPEG, PNG, TIFF, BMP, WebP or DICOM file. DIR is a folder of such files. - reads an image from standard
    input.

    \b
      cxr-edge predict -m bundle xray.jpeg
      cxr-edge predict -m bundle folder --format csv > decisions.csv
      cxr-edge predict -m bundle folder -o decisions.jsonl

    With -o, rows are collected in FILE.partial until all images are done. After an interruption the same command
    continues there and repeats only images that failed or changed. A different model, engine, precision or operating
    point is an error. FILE replaces an earlier result and has one row for each image, in the order given.
    FILE.run.json records what produced it.
    """
    from cxr_edge.runtime.predictor import load

    output = _output_file(target) if target is not None else None
    predictor = load(**model)
    images = [image for source in sources for image in _expand(source)]
    failed: list[str] = []
    if output:
        _exit_for(_predict_to_file(predictor, images, output, format), len(images))
        return
    emit(_watched(_rows(predictor, images), len(images), failed), format or "table")
    _exit_for(len(failed), len(images))


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|-...")
@model_options
@threads_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="Grad-CAM or integrated gradients.",
)
@click.option(
    "--max-steps", type=click.IntRange(1), default=MAX_STEPS, show_default=True, help="For ig: maximum number of steps."
)
@click.option(
    "--baseline",
    type=click.Choice(BASELINES),
    default=BASELINES[0],
    show_default=True,
    help="For ig: image at the start of the path.",
)
@output_format("table", "json", "jsonl", "csv")
def explain(
    sources: Sequence[str], output: Path, method: str, max_steps: int, baseline: str, format: str, **model: Any
) -> None:
    """Draw the evidence for each decision over the radiograph, as a PNG file.

    gradcam shows which regions are evidence for pneumonia. ig (integrated gradients) shows which pixels are evidence
    for or against it. ig takes hundreds of times as long, and needs a bundle with gradient.onnx and cxr-edge[onnx].

    \b
      cxr-edge explain -m bundle xray.jpeg -o pictures
      cxr-edge explain -m bundle xray.jpeg -o pictures --method ig
    """
    from cxr_edge.runtime.predictor import load

    if output.exists() and not output.is_dir():
        raise UsageError(f"-o {output}: is a file; name a folder for the pictures")
    predictor = load(**model)
    images = [image for source in sources for image in _expand(source)]
    failed: list[str] = []
    how = partial(predictor.explain, method=method, max_steps=max_steps, baseline=baseline)
    emit(_watched(_explain(how, images, output), len(images), failed), format)
    _exit_for(len(failed), len(images))


def _rows(predictor: Predictor, images: Sequence[str]) -> Iterator[Row]:
    for path, result in zip(images, predictor.predict_many(_source(path) for path in images), strict=True):
        yield {"path": path} | (_error(result) if isinstance(result, CxrEdgeError) else result.to_dict())


def _explain(explain_one: Callable[[ImageSource], Explanation], images: Sequence[str], folder: Path) -> Iterator[Row]:
    from cxr_edge.runtime.explanation.gradcam import encode_picture
    from cxr_edge.runtime.files import write_atomically

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


def _predict_to_file(predictor: Predictor, images: Sequence[str], output: Path, format: str | None) -> int:
    from cxr_edge.runtime.cli.batch import write_batch
    from cxr_edge.runtime.cli.journal import Facts

    def decide(todo: Sequence[str]) -> Iterator[Row]:
        return _watched(_rows(predictor, todo), len(todo), [])

    return write_batch(decide, Facts.of(predictor), images, output, format)


def _output_file(target: str) -> Path:
    """The path of -o; a name that ends with a separator is a folder, even if it does not exist."""
    if target.endswith(("/", os.sep)):
        raise UsageError(f"-o {target}: is a folder; name a file in it, for example {target}decisions.jsonl")
    return Path(target)


def _expand(source: str) -> list[str]:
    from cxr_edge.runtime.imaging.folders import find_images

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
    """A file name for each picture: the stem of the image, with a number if an earlier image has the same stem."""
    last: dict[str, int] = {}
    names: dict[str, None] = {}
    for image in images:
        stem = name = "stdin" if image == STDIN else Path(image).stem
        while name in names:
            last[stem] = last.get(stem, 1) + 1
            name = f"{stem}-{last[stem]}"
        names[name] = None
    return list(names)


def _error(error: CxrEdgeError) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _watched(rows: Iterable[Row], total: int, failed: list[str]) -> Iterator[Row]:
    """Pass rows on with a progress bar; collect failed paths and report them on standard error."""
    with click.progressbar(rows, total, file=sys.stderr, hidden=total < LONG_BATCH) as bar:
        for row in bar:
            if "error" in row:
                failed.append(row["path"])
                click.echo(f"error: {row['error']['message']}", err=True)
            yield row


def _exit_for(failed: int, total: int) -> None:
    if failed:
        click.get_current_context().exit(EXIT_BAD_INPUT if total == 1 else EXIT_SOME_FAILED)

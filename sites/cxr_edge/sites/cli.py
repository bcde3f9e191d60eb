"""Commands of `sites`: `calibrate` and `monitor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import click

from cxr_edge.runtime.cli.console import emit, output_format, trusted_option
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, UsageError

PATH = click.Path(path_type=Path)


def _range(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, float] | None:
    """Parse `LOW..HIGH`, or one number."""
    if text is None:
        return None
    low, _, high = text.partition("..")
    try:
        ends = float(low), float(high or low)
    except ValueError as error:
        raise click.BadParameter(f"found {text!r}, expected a range such as 0.2..0.5") from error
    if not 0 < ends[0] <= ends[1] < 1:
        raise click.BadParameter(f"found {text!r}, expected 0 < LOW ≤ HIGH < 1, such as 0.2..0.5")
    return ends


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--images", type=PATH, metavar="SITE", help="Folder with radiographs of the site.")
@click.option("--labels", type=PATH, metavar="site.csv", help="CSV file: path,label with paths relative to SITE.")
@click.option("--prevalence", metavar="LOW..HIGH", callback=_range, help="Known share of pneumonia at the site.")
@click.option("--sensitivity", type=click.FloatRange(0.5, 1), help="Least sensitivity on the labelled images.")
@click.option("--default", "is_default", is_flag=True, help="Make `site` the default operating point.")
@click.option("--force", is_flag=True, help="Accept a shift of the threshold beyond its bound.")
@click.option("--undo", is_flag=True, help="Write the bundle without its calibration.")
@click.option("-o", "--output", "target", type=PATH, required=True, help="Site bundle to write; a new folder.")
@output_format("table", "json")
def calibrate(bundle: Path, target: Path, images: Path | None, undo: bool, format: str, **options: Any) -> None:
    """Give a bundle the threshold of a site, as the operating point `site` of a new bundle.

    BUNDLE stays untouched; its operating points and files are copied. With --labels the command fits the logits of 30
    or more images of each class. Without, it looks for two modes in the logits of 100 or more images and sets the
    threshold between them; it refuses if there are not two. docs/new-site.md says when not to use it.

    \b
      cxr-edge calibrate bundle --images site --labels site.csv --sensitivity 0.95 -o bundle-site
      cxr-edge calibrate bundle --images site --prevalence 0.2..0.5 -o bundle-site
      cxr-edge predict -m bundle-site --operating-point site xray.jpeg
      cxr-edge calibrate --undo bundle-site -o bundle-shipped
    """
    if undo:
        _undo(bundle, images, target, options)
    elif images is None:
        raise UsageError("--images: found nothing, expected the folder with radiographs of the site")
    else:
        _calibrate(bundle, images, target, format, options)


def _undo(bundle: Path, images: Path | None, target: Path, options: Mapping[str, Any]) -> None:
    from cxr_edge.sites.calibration.calibrate import undo_calibration

    if images or any(options.values()):
        raise UsageError("--undo: found other options, expected only the bundle and -o; leave the others out")
    undo_calibration(bundle, target)
    click.echo(f"{target}: the shipped operating points only\n{_next(bundle, target)}", err=True)


def _calibrate(bundle: Path, images: Path, target: Path, format: str, options: Mapping[str, Any]) -> None:
    from rich.console import Console

    from cxr_edge.runtime.bundles.manifest import SITE
    from cxr_edge.sites.calibration.calibrate import calibrate_bundle
    from cxr_edge.sites.calibration.images import training_contents

    with Console(stderr=True).status("0 images") as status:
        done = count(1)
        site, written = calibrate_bundle(
            bundle, images, target=target, tick=lambda: status.update(f"{next(done)} images"), **options
        )
    point = written.manifest.operating_point(SITE)
    assert written.manifest.site is not None
    record = {"operating_point": SITE, "threshold": point.threshold, "chosen": point.chosen}
    rows = record | {"default": written.manifest.operating_points[0].name} | asdict(written.manifest.site)
    emit(rows if format == "json" else [{"what": key, "found": _show(value)} for key, value in rows.items()], format)
    if site.copies:
        click.echo(f"{site.copies} files were left out, because their content occurs twice", err=True)
    if training_contents(written.manifest) is None:
        click.echo(
            "not checked: whether images are also in the training data, which this bundle does not list", err=True
        )
    click.echo(_next(bundle, target), err=True)


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return " to ".join(f"{end:.4g}" for end in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _next(bundle: Path, target: Path) -> str:
    """What remains to be done with a new bundle."""
    from cxr_edge.runtime.bundles.manifest import SIGNATURE

    sign = f", then cxr-edge sign {target} --key KEY: the signature of {bundle} does not cover it"
    return f"next: cxr-edge verify {target} --data DATA" + (sign if (bundle / SIGNATURE).is_file() else "")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DECISIONS...")
@click.option("-m", "--model", "model", type=click.Path(path_type=Path), help="Bundle.  [default: the packaged model]")
@click.option("--window", type=click.IntRange(50), default=200, show_default=True, help="Number of images in a window.")
@click.option("--by", type=click.Choice(["day"]), help="One window for each day (field `time`).")
@click.option(
    "--prevalence", metavar="LOW..HIGH", callback=_range, help="Share of pneumonia at the site.  [default: any]"
)
@click.option("--report", type=click.Path(path_type=Path), metavar="PAGE.html", help="Write an HTML page.")
@trusted_option
@output_format("table", "json")
def monitor(
    files: tuple[Path, ...], model: Path | None, window: int, by: str | None,
    prevalence: tuple[float, float] | None, report: Path | None, trusted: Path | None, format: str,
) -> None:  # fmt: skip
    """Compare decisions with the reference of the model; exit with 1 if something moved.

    DECISIONS are files that `predict -o` wrote (JSON lines, JSON or CSV). Windows are counted in file order. The share
    of pneumonia may differ from that of the reference; a change within the classes is an alarm. At most one window in
    200 raises a false alarm.

    \b
      cxr-edge predict -m bundle incoming -o decisions.jsonl
      cxr-edge monitor decisions.jsonl -m bundle --report course.html
    """
    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.predictor import packaged_model
    from cxr_edge.sites.monitoring.course import follow
    from cxr_edge.sites.monitoring.page import print_course, write_page

    bundle = Bundle.open(model or packaged_model(), trusted)
    course = follow(files, bundle, None if by else window, prevalence or (0.0, 1.0))
    if report:
        write_page(report, course)
    if format == "json":
        emit(course.to_dict(), format)
    else:
        print_course(course)
    if course.moved:
        click.get_current_context().exit(EXIT_CHECK_FAILED)

"""Commands of `sites`: `calibrate` and `monitor`."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_edge.runtime.cli.console import emit, output_format, trusted_option
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, UsageError


@click.command()
def calibrate() -> None:
    """Give a bundle the threshold of a site."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DECISIONS...")
@click.option("-m", "--model", "model", type=click.Path(path_type=Path), help="Bundle.  [default: the packaged model]")
@click.option("--window", type=click.IntRange(50), default=200, show_default=True, help="Number of images in a window.")
@click.option("--by", type=click.Choice(["day"]), help="One window for each day (field `time`).")
@click.option("--prevalence", metavar="LOW..HIGH", help="Share of pneumonia at the site.  [default: 0..1]")
@click.option("--report", type=click.Path(path_type=Path), metavar="PAGE.html", help="Write an HTML page.")
@trusted_option
@output_format("table", "json")
def monitor(
    files: tuple[Path, ...], model: Path | None, window: int, by: str | None, prevalence: str | None,
    report: Path | None, trusted: Path | None, format: str,
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
    course = follow(files, bundle, None if by else window, _limits(prevalence))
    if report:
        write_page(report, course)
    if format == "json":
        emit(course.to_dict(), format)
    else:
        print_course(course)
    if course.moved:
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _limits(prevalence: str | None) -> tuple[float, float]:
    """The limits of LOW..HIGH; 0 and 1 if there are none."""
    if prevalence is None:
        return 0.0, 1.0
    try:
        low, high = map(float, prevalence.split(".."))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UsageError(f"--prevalence: found {prevalence!r}, expected two shares in [0, 1], such as 0.2..0.5")
    return low, high

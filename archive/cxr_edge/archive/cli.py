"""The command `cxr-edge score` and its subcommand `report`.

`--help` imports this module, so functions import Ray, PyArrow and the runtime only when they need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cxr_edge.runtime.cli.console import output_format, trusted_option
from cxr_edge.runtime.cli.decide import model_options
from cxr_edge.runtime.errors import EXIT_SOME_FAILED


class _Score(click.Command):
    """`score SOURCE...` scores; `score report OUT` reports. A folder named report is written ./report."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Hand the arguments after `report` to that command."""
        if args[:1] == ["report"]:
            return report.make_context(f"{info_name} report", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _shard(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int]:
    """Parse `i/n`."""
    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"found {text!r}, expected i/n with 1 ≤ i ≤ n, such as 3/16")
    return int(number), int(count)


@click.command(cls=_Score, short_help="Score an archive of radiographs, on this machine or a cluster.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--output", "target", required=True, metavar="OUT", help="Folder or URL of the result.")
@model_options
@click.option(
    "--workers", type=click.IntRange(1), help="Number of workers.  [default: as many as the processors allow]"
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Images that a worker decides on at a time."
)
@click.option(
    "--gpus",
    type=click.FloatRange(0),
    help="GPUs of each worker.  [default: 1 with --engine tensorrt, else 0]",
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster to join; auto is that of this machine.")
@click.option("--shard", metavar="I/N", callback=_shard, help="Score part I of N; each input is in one part.")
@click.option("--sample", type=click.FloatRange(0, 1, min_open=True), help="Score this share of the inputs.")
@click.option("--limit", type=click.IntRange(1), help="Score at most this many inputs, the first ones by URI.")
@click.option("--retry-errors", is_flag=True, help="Score inputs again whose row is an error.")
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds to read one object."
)
def score(
    sources: Sequence[str], target: str, shard: tuple[int, int], sample: float | None, limit: int | None,
    retry_errors: bool, workers: int | None, threads: int, gpus: float | None, address: str | None, timeout: float,
    **model: Any,
) -> None:  # fmt: skip
    """Score an archive of radiographs, and write a Parquet data set with one row for each.

    SOURCE is a folder, a glob, a file, a tar file (WebDataset), a manifest (.csv or .parquet with a column uri, and
    optionally study, patient, label, time, size, etag) or a list of URIs (.txt); here, or at s3://, gs://, abfs:// or
    https://. OUT/rows has the rows; docs/archive.md explains them.

    \b
      cxr-edge score archive -o scores
      cxr-edge score s3://hospital/2024/ -o s3://hospital/scores --address auto
      cxr-edge score manifest.parquet -o scores --shard 3/16
      cxr-edge score report scores --page report.html

    After an interruption the same command continues. A different model or operating point is an error.
    """
    from cxr_edge.archive.cluster import Pool
    from cxr_edge.archive.run import Selection, score_archive

    gpus = gpus if gpus is not None else float(model["engine"] == "tensorrt")
    selection = Selection(shard, sample, limit, retry_errors)
    outcome = score_archive(sources, target, model, selection, Pool(address, workers, threads, gpus), timeout)
    click.echo(f"{outcome.inputs:,} inputs, {outcome.rows:,} new rows, {outcome.errors:,} errors in {target}", err=True)
    if outcome.errors:
        click.get_current_context().exit(EXIT_SOME_FAILED)


@click.command()
@click.argument("target", metavar="OUT")
@click.option("-m", "--model", "model", type=click.Path(path_type=Path), help="Bundle.  [default: the packaged model]")
@click.option("--page", type=click.Path(path_type=Path), metavar="PAGE.html", help="Write an HTML page.")
@click.option("--no-pictures", is_flag=True, help="Leave the radiographs out of the page.")
@trusted_option
@output_format("table", "json")
def report(
    target: str, model: Path | None, page: Path | None, no_pictures: bool, trusted: Path | None, format: str
) -> None:
    """Report on the result OUT of `cxr-edge score`.

    Counts, shares of pneumonia, of novel images and of errors by file and over time, drift against the reference of
    the model, and the figures of `evaluate` if labels were carried along. The page also shows the most novel
    radiographs and those closest to the threshold, with their heatmaps.
    """
    from cxr_edge.archive.report import make_report
    from cxr_edge.archive.report_page import print_report, write_page

    found = make_report(target, model, trusted)
    if page:
        write_page(page, found, with_pictures=not no_pictures)
    print_report(found, format)

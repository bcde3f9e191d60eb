"""Batches that can be interrupted: `cxr-edge predict -o FILE`.

Rows are collected in the journal FILE.partial. When every image has a row, FILE is written from it as a whole, in the
order of the arguments. FILE.run.json records what produced it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import click

from cxr_edge.runtime.cli.console import Row, interrupted_by_sigterm, scalars
from cxr_edge.runtime.cli.journal import Facts, Journal, stamp_of
from cxr_edge.runtime.errors import UsageError
from cxr_edge.runtime.files import open_atomically, write_atomically

#: Columns of a CSV file, whatever fields its rows have.
COLUMNS = (
    "path", "label", "probability", "logit", "operating_point", "threshold", "rule_out", "novelty", "in_distribution",
    "unlike", "lungs_found", "evidence_in_lungs", "calibrated", "site_probability", "error",
)  # fmt: skip


def write_batch(
    decide: Callable[[Sequence[str]], Iterable[Row]],
    facts: Facts,
    images: Sequence[str],
    output: Path,
    format: str | None = None,
) -> int:
    """Decide on images and write one row for each to a file; continue an interrupted call.

    Rows of the earlier call are reused unless they are errors or the size or modification time of the image file
    changed. An image that is named twice gets two rows.

    Parameters
    ----------
    decide
        Returns one row for each image, in order, with its `path`, and `error` if it failed.
    facts
        What produces the rows.
    format
        `jsonl`, `csv` or `json`; None means by the suffix of `output`, else `jsonl`.

    Returns
    -------
    The number of rows that are errors.

    Raises
    ------
    UsageError
        If `output` is a folder or one of the images, if its journal belongs to another model, or if another process
        writes it.
    OutputError
        If it cannot be written; finished rows are kept.
    """
    format = _checked_format(format, output)
    _check_target(output, images)
    stamps = {image: stamp_of(image) for image in images}
    with Journal(output.with_name(f"{output.name}.partial"), facts) as journal:
        todo = [image for image, stamp in stamps.items() if not journal.has(image, stamp)]
        if len(todo) < len(stamps):
            click.echo(f"resuming: {len(stamps) - len(todo)} of {len(stamps)} are in {journal.path}", err=True)
        with _resumable(journal, stamps):
            for row in decide(todo):
                journal.append(row, stamps[row["path"]])
            failed = _write_result(journal.rows(images), output, format)
            record = asdict(facts) | {"result": output.name, "format": format, "rows": len(images), "failed": failed}
            write_atomically(facts_path(output), json.dumps(record, indent=2) + "\n")
        journal.delete()
    return failed


def _checked_format(format: str | None, output: Path) -> str:
    chosen = format or {".csv": "csv", ".json": "json"}.get(output.suffix.lower(), "jsonl")
    if chosen not in WRITERS:
        raise UsageError(f"--format {chosen} is for the screen only; with -o choose one of: {', '.join(WRITERS)}")
    return chosen


def _check_target(output: Path, images: Iterable[str]) -> None:
    """Refuse a target that is a folder, no ordinary file, or one of the images."""
    if output.is_dir() or output.name in ("", ".."):
        raise UsageError(f"-o {output}: is a folder; name a file in it, for example {output / 'decisions.jsonl'}")
    if output.exists() and not output.is_file():
        raise UsageError(f"-o {output}: is not an ordinary file; leave -o out and redirect standard output")
    target = output.absolute()
    if any(Path(image).absolute() == target for image in images):
        raise UsageError(f"-o {output}: is one of the images to decide on; name another file, or it would be lost")


@contextmanager
def _resumable(journal: Journal, stamps: dict[str, Any]) -> Iterator[None]:
    """After an interruption or error, report what is kept and how to continue; SIGTERM acts like Ctrl-C."""
    try:
        with interrupted_by_sigterm():
            yield
    except BaseException:
        done = sum(journal.has(image, stamp) for image, stamp in stamps.items())
        with suppress(OSError):  # standard error itself may have failed
            click.echo(
                f"{done} of {len(stamps)} images are done and kept in {journal.path}; run the same command to continue",
                err=True,
            )
        raise


def _write_result(rows: Iterable[Row], output: Path, format: str) -> int:
    """Write the complete result; return the number of rows that are errors."""
    failed = 0

    def counted() -> Iterator[Row]:
        nonlocal failed
        for row in rows:
            failed += "error" in row
            yield row

    # The facts of an earlier result must not remain beside this one.
    facts_path(output).unlink(missing_ok=True)
    with open_atomically(output, sync=True) as stream:
        # File names need not be UTF-8; surrogateescape writes them unchanged.
        text = TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
        WRITERS[format](text, counted())
        text.detach()
    return failed


def facts_path(output: Path) -> Path:
    """The file that records which model made the rows of an output file."""
    return output.with_name(f"{output.name}.run.json")


def _write_jsonl(stream: TextIO, rows: Iterable[Row]) -> None:
    stream.writelines(json.dumps(row) + "\n" for row in rows)


def _write_json(stream: TextIO, rows: Iterable[Row]) -> None:
    """Write one array with a row on each line, without keeping all rows in memory."""
    for number, row in enumerate(rows):
        stream.write(("[\n" if number == 0 else ",\n") + json.dumps(row))
    stream.write("\n]\n")


def _write_csv(stream: TextIO, rows: Iterable[Row]) -> None:
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(scalars(row) for row in rows)


WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "json": _write_json}

"""Output of all commands: results go to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), for example by `kill`, `timeout` or a service manager."""


class ClosedPipeError(Exception):
    """The reader of standard output closed the pipe, as `head` does.

    This is not an `OSError`, because click exits with 1 for a closed pipe, and here 1 means that a check did not hold.
    """


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `Terminated` inside the block, so that finished work can be kept and reported.

    This works in the main thread only, because Python allows signal handlers nowhere else.
    """
    import signal
    import threading

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


#: The option --trusted, for every command that uses a bundle.
trusted_option = click.option(
    "--trusted",
    type=click.Path(path_type=Path),
    metavar="KEY.pub",
    help="Refuse the bundle unless it is signed with this key (PEM file).",
)


def output_format(*formats: str) -> Callable[[F], F]:
    """Add the option --format; the first choice is the default."""
    return click.option(
        "--format", "format", type=click.Choice(formats), default=formats[0], show_default=True, help="Output format."
    )


def emit(result: Row | Iterable[Row], format: str) -> None:
    """Print a result: one object, or rows.

    `json` gives one document, `jsonl` one line for each row at once, and `csv` and `table` the scalar fields.
    """
    import csv
    import json

    if format == "json":
        click.echo(json.dumps(result if isinstance(result, Mapping) else list(result), indent=2))
    elif format == "jsonl":
        for row in _rows(result):
            click.echo(json.dumps(row))
    elif format == "csv":
        rows = [scalars(row) for row in _rows(result)]
        writer = csv.DictWriter(
            sys.stdout, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        click.echo(table([scalars(row) for row in _rows(result)]))


def table(rows: Sequence[Row]) -> str:
    """Format rows as aligned columns below their keys."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [header, *([_cell(row.get(key)) for key in header] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _rows(result: Row | Iterable[Row]) -> Iterable[Row]:
    return [result] if isinstance(result, Mapping) else result


def scalars(row: Row) -> dict[str, Any]:
    """Return a row without nested fields; an error becomes one text."""
    flat = {key: value for key, value in row.items() if not isinstance(value, (Mapping, list))}
    if isinstance(error := row.get("error"), Mapping):
        flat["error"] = f"{error['type']}: {error['message']}"
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Results of peers, profile and load as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_mode(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of `modes` by its kind."""
    {"peers": _print_peers, "profile": _print_profile, "load": _print_load, "scale": _print_scale}[record["kind"]](
        record, console
    )
    for reason in record["passed_over"]:
        console.print(f"not measured: {reason}", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _where(record: Mapping[str, Any]) -> str:
    return f"{record['machine']['processor']} ({', '.join(record['machine']['features']) or 'no vector extensions'})"


def _print_peers(record: Mapping[str, Any], console: Console) -> None:
    title = (
        f"{_where(record)}; {record['threads']} thread(s); {record['images']} images, median "
        f"{record['megapixels']:.2f} megapixels; file to result, in turns"
    )
    table = _table(title, "", "gives", "ms", "times ours", "flips", "max |Δp|")
    for row in sorted(record["rows"], key=lambda row: float(row["median_ms"])):
        slower = row["times_slower"]
        ratio = f"×{slower['ratio']:.2f} [{slower['low']:.2f}, {slower['high']:.2f}]"
        name = f"{row['name']}{' (ours)' if row['ours'] else ''}"
        table.add_row(
            name, row["gives"], f"{row['median_ms']:.1f}", ratio, str(row["flips"]), f"{row['max_difference']:.3f}"
        )
    console.print(table)
    console.print(f"quickest peer of equal or better parity: {record['quickest_equal'] or 'none'}", highlight=False)
    if bare := record["bare"]:
        share = "our time is ×{ratio:.3f} [{low:.3f}, {high:.3f}] that of bare decoder, resizing and engine".format(
            **bare
        )
        console.print(f"{bare['file']}: {share}", highlight=False)
    for file, found in record["benchmark_model"].items():
        average = found["latency"].get("avg_ms")
        console.print(
            f"{file}: LiteRT's own benchmark program says {average} ms for the network alone", highlight=False
        )


def _print_profile(record: Mapping[str, Any], console: Console) -> None:
    peaks = record["peaks"]
    console.print(
        f"{_where(record)}: peak {peaks['fp32']:.0f}·10⁹ multiply-accumulates per second in fp32 ({peaks['fp32_by']}), "
        f"{peaks['int8']:.0f}·10⁹ in int8 ({peaks['int8_by']}), {peaks['bandwidth']:.0f} GB/s",
        highlight=False,
    )
    for file in record["files"]:
        total, least = (sum(row[key] for row in file["by_kind"]) for key in ("ms", "least_ms"))
        table = _table(
            f"{file['file']}: {total:.2f} ms, limit {least:.2f} ms", "operator", "count", "ms", "share", "limit"
        )
        for row in file["by_kind"][:10]:
            limit = f"{row['least_ms']:.3f}" if row["macs"] else "-"
            table.add_row(row["kind"], str(row["count"]), f"{row['ms']:.3f}", f"{row['share']:.1%}", limit)
        console.print(table)
        causes = ", ".join(f"{row['kind']} {row['beyond_ms']:.2f} ms" for row in file["causes"])
        console.print(f"largest distances from the limit: {causes}", highlight=False, soft_wrap=True)


def _print_scale(record: Mapping[str, Any], console: Console) -> None:
    console.print(f"{_where(record)}; {record['file']}", highlight=False)
    for curve in record["curves"]:
        console.print(curve["words"], highlight=False, soft_wrap=True)


def _print_load(record: Mapping[str, Any], console: Console) -> None:
    title = f"{_where(record)}; {record['file']}, {record['workers']} workers with {record['threads']} thread(s) each"
    table = _table(title, "scenario", "result", "p99", "valid", "duration")
    for row in record["scenarios"]:
        p99 = "-" if row["p99_ms"] is None else f"{row['p99_ms']:.1f} ms"
        bound = f" at p99 ≤ {row['bound_ms']:.0f} ms" if row["bound_ms"] else ""
        length = f"{row['seconds']:.0f} s" + ("" if row["official"] else " (the rules demand 600 s)")
        table.add_row(row["scenario"], f"{row['value']:.1f} {row['unit']}{bound}", p99, str(row["valid"]), length)
    console.print(table)

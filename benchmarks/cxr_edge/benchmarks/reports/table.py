"""Results of the benchmark as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cxr_edge.benchmarks.latency import STAGES
from cxr_edge.benchmarks.regression import Check


def print_benchmark(record: Mapping[str, Any], console: Console) -> None:
    """Print the table of files and, if it was measured, the comparison with Keras."""
    options, machine = record["options"], record["machine"]
    title = (
        f"{machine['processor']} ({', '.join(machine['features'])}), {machine['cores']} cores; "
        f"{options['threads']} thread(s), {options['samples']} "
        f"samples in turns; milliseconds, median [95th percentile]"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("file", no_wrap=True)
    for column in (*STAGES, "vs first", "of limit", "heatmap cost", "cold start", "peak RSS", "energy", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in record["files"]:
        table.add_row(row["file"], *(_stage(row["stages_ms"][stage]) for stage in STAGES), *_others(row))
    console.print(table)
    for peer in record.get("keras", {}).get("peers", []):
        slower = peer["times_slower"]
        console.print(
            f"{peer['name']}, GradientTape, file to decision and heatmap: {_stage(peer['total_ms'])} ms, "
            f"{slower['ratio']:.0f} [{slower['low']:.0f}, {slower['high']:.0f}] times {record['keras']['file']}",
            highlight=False,
        )
    _print_limit(record["limit"], console)
    _print_device(record["device"], console)
    for reason in record["passed_over"]:
        console.print(f"not measured: {reason}", highlight=False)


def _print_limit(limit: Mapping[str, Any] | None, console: Console) -> None:
    """Print what the column `of limit` refers to."""
    if limit is None:
        console.print("no limit: the bundle has no fp32 ONNX file, from which the work is counted", highlight=False)
        return
    decode = "" if limit["decode_ms"] is None else f"; floor of decoding (entropy decoder) {limit['decode_ms']:.2f} ms"
    console.print(
        f"limit of the network: {limit['fp32']:.0f}·10⁹ multiply-accumulates per second in fp32 ({limit['fp32_by']}), "
        f"{limit['int8']:.0f}·10⁹ in int8 ({limit['int8_by']}), {limit['bandwidth']:.0f} GB/s{decode}",
        highlight=False,
        soft_wrap=True,
    )


def _print_device(device: Mapping[str, Any], console: Console) -> None:
    """Print settings, range of the sensors and warnings; say what the system does not show."""
    settings, sensors = device["settings"], device["measured"]["sensors"]
    said = [f"{name.replace('_', ' ')}: {value}" for name, value in settings.items() if value not in (None, ())]
    for kind in ("clock", "temperature"):
        found = [s for s in sensors if s["kind"] == kind and "lowest" in s]
        if found:
            low, high = min(s["lowest"] for s in found), max(s["highest"] for s in found)
            said.append(f"{kind} {low:.0f} to {high:.0f} {found[0]['unit']}")
    missing = [kind for kind in ("clock", "temperature", "throttling") if kind not in {s["kind"] for s in sensors}]
    missing += [] if {"power", "energy"} & {s["kind"] for s in sensors} else ["power"]
    said += [f"the system shows no {', '.join(missing)}"] if missing else []
    console.print("device: " + "; ".join(said), highlight=False, soft_wrap=True)
    for warning in device["measured"]["warnings"]:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print each slowdown, each limit that is not met, and the number of limits."""
    for check in checks:
        if check.interval or not check.passed:
            verdict = check.in_turns.verdict if check.in_turns and check.passed else "held"
            console.print(f"{verdict if check.passed else 'FAILED'}: {check}", highlight=False, soft_wrap=True)
    if checks:
        failed = sum(not check.passed for check in checks)
        console.print(f"{len(checks)} limits of baseline and budget, {failed} failed", highlight=False)


def _others(row: Mapping[str, Any]) -> list[str]:
    ratio, cost = row["total_against_first"], row.get("heatmap_cost")
    return [
        f"×{ratio['ratio']:.2f}",
        f"{row['limit']['share']:.0%}" if "limit" in row else "-",
        f"{cost['ratio'] - 1:+.1%} [{cost['low'] - 1:+.1%}, {cost['high'] - 1:+.1%}]" if cost else "-",
        f"{row['cold_start_s']:.2f} s" if "cold_start_s" in row else "-",
        f"{row['peak_rss_mb']:.0f} MB" if "peak_rss_mb" in row else "-",
        f"{row['energy']['mj_per_decision']:.0f} mJ" if "energy" in row else "-",
        f"{row['bytes'] / 1e6:.2f} MB",
    ]


def _stage(found: Mapping[str, float]) -> str:
    if "p50" not in found:
        return "-"
    return f"{found['p50']:.2f}" + (f" [{found['p95']:.2f}]" if "p95" in found else "")

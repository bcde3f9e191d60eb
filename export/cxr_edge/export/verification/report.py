"""Results of `verify` as tables for the terminal and in Markdown; the HTML page has the same rows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cxr_edge.export.verification.layers import LayerReport
from cxr_edge.export.verification.preprocessing import PreprocessingParity
from cxr_edge.export.verification.verify import FileResult, Verification

COLUMNS = (
    "file", "flips", "McNemar p", "max |Δlogit|", "max |Δp|", "ΔAUC [95 %]", "DeLong p", "Δsens", "Δspec", "ΔECE",
    "ΔBrier", "novelty flips", "unlike flips", "map ρ", "lungs Dice", "gate",
)  # fmt: skip


def print_verification(verification: Verification, console: Console) -> None:
    """Print the table, and below it the reason of each failure."""
    table = Table(title=f"against the trained network, {verification.images} images", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("file", "gate") else "right", no_wrap=True)
    for result in verification.files:
        verdict = "[green]passed[/]" if result.passed else "[red]FAILED[/]"
        table.add_row(*cells(result)[:-1], verdict)
    console.print(table)
    for line in (*_time_lines(verification), *map(preprocessing_line, verification.preprocessing)):
        console.print(line, highlight=False)
    for result in verification.files:
        for line in result.failures:
            console.print(f"[red]FAILED[/] {result.file.path}: {line}", highlight=False)
    for result in verification.files:
        if result.layers:
            _print_layers(result.file.path, result.layers, console)


def markdown(verification: Verification) -> str:
    """The table as Markdown, for the summary of a GitHub job."""
    verdict = "passed" if verification.passed else "**FAILED**"
    name, images = verification.manifest.name, verification.images
    lines = [
        f"### cxr-edge verify: {name} {verdict}",
        f"Against the trained network, {images} images.\n",
        "| " + " | ".join(column.replace("|", "\\|") for column in COLUMNS) + " |",
        "|---" + "|--:" * (len(COLUMNS) - 2) + "|---|",
    ]
    lines += [f"| {' | '.join(cells(result))} |" for result in verification.files]
    failures = [f"- **{r.file.path}**: {line}" for r in verification.files for line in r.failures]
    left = [f"- {r.file.path}: {summary(r.layers)}" for r in verification.files if r.layers]
    read = [f"- {line}" for line in (*_time_lines(verification), *map(preprocessing_line, verification.preprocessing))]
    parts = [failures, left, read]
    return "\n".join(lines) + "\n" + "".join("\n" + "\n".join(part) + "\n" for part in parts if part)


def cells(result: FileResult) -> list[str]:
    """One row of the table, in the order of `COLUMNS`."""
    verdict = "passed" if result.passed else "FAILED"
    p = result.parity
    if p is None:
        return [result.file.path, *["-"] * (len(COLUMNS) - 2), verdict]
    low, high = p.auc_interval
    return [
        result.file.path,
        str(max(p.flips.values())),
        f"{min(p.mcnemar_p.values()):.2g}",
        _or_dash(p.logit_max, ".1e"),
        f"{p.probability_max:.1e}",
        f"{p.auc_delta:+.5f} [{low:+.5f}, {high:+.5f}]",
        f"{p.delong_p:.2g}",
        f"{p.sensitivity_delta:+.4f}",
        f"{p.specificity_delta:+.4f}",
        f"{p.ece_delta:+.4f}",
        f"{p.brier_delta:+.5f}",
        _or_dash(p.novelty_flips, "d"),
        _or_dash(p.unlike_differences, "d"),
        _or_dash(p.heatmap_rank_correlation, ".4f"),
        _or_dash(p.lungs_dice, ".4f"),
        verdict,
    ]


def _or_dash(value: float | None, how: str) -> str:
    """A formatted value; a dash if the file lacks the output."""
    return "-" if value is None else format(value, how)


def _time_lines(verification: Verification) -> list[str]:
    """A sentence about the time of each file that a page ran."""
    return [
        f"{result.file.path} in {result.parity.backend}: "
        + ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in result.milliseconds.items())
        + " for each image (median)"
        for result in verification.files
        if result.parity and result.milliseconds
    ]


def preprocessing_line(parity: PreprocessingParity) -> str:
    """A sentence about one loader."""
    return (
        f"read by {parity.loader}, {parity.images} images: pixels differ by {parity.pixel_max} at most, "
        f"{parity.pixel_mean:.4f} on average; {parity.flips} decisions flipped, max |Δp| {parity.probability_max:.4f}"
    )


def summary(report: LayerReport) -> str:
    """A sentence about where a file departs from its reference."""
    if not report.layers:
        return f"no tensor has a counterpart in {report.reference}"
    if (layer := report.first_to_leave) is None:
        worst = report.worst
        return (
            f"all {len(report.layers)} tensors within {report.limit:.0f} dB of {report.reference}; "
            f"the farthest is {worst.name}, {worst.sqnr:.1f} dB"
        )
    where = f"{layer.name} ({layer.operator})"
    return f"leaves {report.reference} at {where}: {layer.sqnr:.1f} dB, limit {report.limit:.0f} dB"


def _print_layers(path: str, report: LayerReport, console: Console) -> None:
    """Print one line, and all tensors if the file departs from its reference."""
    console.print(f"{path}: {summary(report)}", highlight=False, markup=False)
    if report.first_to_leave is None:
        return
    table = Table(title=f"{path} against {report.reference}, {report.images} images", title_justify="left")
    for column in ("tensor", "operator", "SQNR, dB", "loss, dB"):
        table.add_column(column, justify="right" if "dB" in column else "left", no_wrap=True)
    for layer in report.layers:
        loss = "-" if layer.loss is None else f"{layer.loss:.1f}"
        mark = "red" if layer is report.first_to_leave else None
        table.add_row(layer.name, layer.operator, f"{layer.sqnr:.1f}", loss, style=mark)
    console.print(table)

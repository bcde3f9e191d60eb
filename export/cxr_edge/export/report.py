"""What `verify` found, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cxr_edge.export.verify import FileResult, Verification

COLUMNS = (
    "file", "flips", "max |Δlogit|", "max |Δp|", "p99 |Δp|", "ΔAUC [95 %]", "Δsens", "Δspec", "ΔECE",
    "novelty flips", "map ρ", "map IoU", "gate",
)  # fmt: skip


def print_verification(verification: Verification, console: Console) -> None:
    """Print the table, and below it why what failed did."""
    table = Table(title=f"against the trained network, {verification.images} images", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("file", "gate") else "right", no_wrap=True)
    for result in verification.files:
        table.add_row(*_cells(result))
    console.print(table)
    p = verification.preprocessing
    console.print(
        f"preprocessing against Pillow, {p.images} images: pixels differ by {p.pixel_max} at most, {p.pixel_mean:.4f} "
        f"on average; {p.flips} decisions flipped, max |Δp| {p.probability_max:.4f}",
        highlight=False,
    )
    for result in verification.files:
        for line in _failures(result):
            console.print(f"[red]FAILED[/] {result.file.path}: {line}", highlight=False)


def _cells(result: FileResult) -> list[str]:
    verdict = "[green]passed[/]" if result.passed else "[red]FAILED[/]"
    p = result.parity
    if p is None:
        return [result.file.path, *["-"] * (len(COLUMNS) - 2), verdict]
    low, high = p.auc_interval
    return [
        result.file.path,
        str(max(p.flips.values())),
        f"{p.logit_max:.1e}",
        f"{p.probability_max:.1e}",
        f"{p.probability_p99:.1e}",
        f"{p.auc_delta:+.5f} [{low:+.5f}, {high:+.5f}]",
        f"{p.sensitivity_delta:+.4f}",
        f"{p.specificity_delta:+.4f}",
        f"{p.ece_delta:+.4f}",
        str(p.novelty_flips),
        f"{p.heatmap_rank_correlation:.4f}",
        f"{p.heatmap_iou:.3f}",
        verdict,
    ]


def _failures(result: FileResult) -> list[str]:
    if result.error:
        return [result.error]
    return [f"{c.name} is {c.value:.4g}, the gate's limit {c.limit:.4g}" for c in result.checks if not c.passed]

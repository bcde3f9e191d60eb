"""Print the table of the README: parity of each file of a bundle beside its time, on this processor.

    cxr-edge bench originals -m bundle -o bench.json
    python benchmarks/front_page.py bundle bench.json

The first command measures; the record says on which files and on which processor. Run both on each processor that the
README names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cxr_edge.runtime.errors import UsageError

COLUMNS = (
    "file",
    "flipped decisions",
    "ΔAUC",
    "max \\|Δp\\|",
    "heatmap ρ",
    "time",
    "cold start",
    "peak memory",
    "size",
)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(bundle: Path, record: Path) -> None:
    """Print the table of BUNDLE, which has a parity.json, and of RECORD, which `bench -o` wrote."""
    parity, measured = (json.loads(path.read_text()) for path in (bundle / "parity.json", record))
    click.echo("\n".join(lines(parity, measured)))


def lines(parity: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown: one sentence about the conditions, then the table.

    Raises
    ------
    UsageError
        If a measured file has no parity, or another content than the one that was verified.
    """
    machine, options = record["machine"], record["options"]
    features = ", ".join(machine["features"]) or "no vector extensions"
    vnni = "with" if any("vnni" in name or name in ("asimddp", "i8mm") for name in machine["features"]) else "without"
    yield (
        f"`verify` ran on {parity['images']:,} images; `bench` on {record['images']} files (median "
        f"{record['megapixels']:.2f} megapixels) with {options['threads']} thread(s) on {machine['processor']} "
        f"({features}), {vnni} int8 dot products. Times are medians from image file to decision and heatmap."
    )
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    verified = {file["path"]: file for file in parity["files"]}
    for row in record["files"]:
        yield _row(row, _verified(row, verified, record))


def _verified(row: Mapping[str, Any], verified: Mapping[str, Any], record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = verified.get(row["file"])
    if found is None or found["sha256"] != record["bundle"]["sha256"][row["file"]]:
        raise UsageError(
            f"parity.json: found no result for the {row['file']} that was measured; run `cxr-edge verify` on the "
            "bundle that `bench` measured"
        )
    return dict(found)


def _row(row: Mapping[str, Any], parity: Mapping[str, Any]) -> str:
    cells = (
        row["file"],
        str(max(parity["flips"].values())),
        f"{parity['auc_delta']:+.5f}",
        f"{parity['probability_max']:.1e}",
        f"{parity['heatmap_rank_correlation']:.4f}",
        f"{row['stages_ms']['total']['p50']:.1f} ms",
        f"{row['cold_start_s']:.2f} s" if "cold_start_s" in row else "–",
        f"{row['peak_rss_mb']:.0f} MB" if "peak_rss_mb" in row else "–",
        f"{row['bytes'] / 1e6:.2f} MB",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

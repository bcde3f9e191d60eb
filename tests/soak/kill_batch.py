"""Kill `cxr-edge predict -o` at random moments, go on, and check that no row is lost, repeated or wrong.

    python tests/soak/kill_batch.py --kills 100

It needs the runtime with one engine. tests/runtime/cli/test_batch.py runs it with a few kills.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Rows = dict[str, dict[str, Any]]


@dataclass
class Soak:
    """Kills that hit a running process, rows found on disk after each, summed, and batches that were finished."""

    kills: int = 0
    rows_kept: int = 0
    batches: int = 0


def soak(folder: Path, kills: int, images: int, seed: int) -> Soak:
    """Kill batches until `kills` have hit; raises AssertionError at the first row that is lost, repeated or wrong.

    Every other kill may hit anywhere from the start of the process to its end, the others while it writes rows.
    """
    chance = random.Random(seed)
    inputs, output = draw(folder / "images", images, seed), folder / "out.jsonl"
    start = time.monotonic()
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "predict", *inputs, "-o"]
    subprocess.run([*command, folder / "expected.jsonl"], stderr=subprocess.DEVNULL)
    duration = time.monotonic() - start
    expected = [without_times(json.loads(line)) for line in (folder / "expected.jsonl").read_text().splitlines()]
    assert [row["path"] for row in expected] == inputs, "the uninterrupted batch has not a row for each input, in order"
    counts, kept = Soak(), {}
    journal = output.with_name("out.jsonl.partial")
    while counts.kills < kills or journal.exists():
        with subprocess.Popen([*command, output], stderr=subprocess.PIPE) as process:
            if counts.kills < kills:  # the last batch ends by itself
                if counts.kills % 2:
                    wait_for_rows(process, journal, chance.uniform(0, 40_000))
                else:
                    wait(process, chance.uniform(0, duration))
                process.kill()
            message = process.stderr.read().decode()
        assert process.returncode in (-9, 3), f"exit {process.returncode}: {message}"
        counts.kills += process.returncode == -9
        kept = check_journal(journal, kept)
        counts.rows_kept += len(kept)
        if output.exists() and not journal.exists():
            check_result(output, expected, kept)
            output.unlink()
            counts.batches += 1
            kept = {}
    return counts


def wait(process: subprocess.Popen, seconds: float) -> None:
    """Wait until a process ends, at most this long."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def wait_for_rows(process: subprocess.Popen, journal: Path, size: float) -> None:
    """Wait until a process has written this many bytes to the journal, or ends."""
    before = size_of(journal)
    while process.poll() is None and size_of(journal) - before <= size:
        time.sleep(0.001)


def size_of(journal: Path) -> int:
    try:
        return journal.stat().st_size
    except FileNotFoundError:  # not begun, or finished
        return 0


def draw(folder: Path, count: int, seed: int) -> list[str]:
    """Draw images; -> their paths, one of them twice and one of a broken file."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed)
    for number in range(count):
        coarse = noise.integers(0, 256, (8, 8), np.uint8)
        cv2.imwrite(str(folder / f"{number:05}.png"), cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC))
    (folder / "broken.png").write_bytes(b"broken")
    paths = [str(path) for path in sorted(folder.iterdir())]
    return [*paths, paths[0]]


def check_journal(journal: Path, before: Rows) -> Rows:
    """Hold a journal to what it had at the kill before; -> its rows that are no errors, with their times."""
    if not journal.exists():
        return before
    lines = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [json.loads(line)["row"] for line in lines[1:]]
    decided = [row for row in rows if "error" not in row]
    repeated = [path for path, times in Counter(row["path"] for row in decided).items() if times > 1]
    assert not repeated, f"decided twice: {repeated}"
    now = {row["path"]: row for row in decided}
    changed = [path for path, row in before.items() if now.get(path) != row]
    assert not changed, f"lost or changed since the kill before: {changed}"
    return now


def check_result(output: Path, expected: list[dict[str, Any]], kept: Rows) -> None:
    """Hold a result to the uninterrupted one, and its rows to those of the journal, times included."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [without_times(row) for row in rows] == expected, "the result is not that of an uninterrupted batch"
    again = [row["path"] for row in rows if row["path"] in kept and row != kept[row["path"]]]
    assert not again, f"decided again after they were written: {again}"


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "timings_ms"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), options.kills, options.images, options.seed)
    print(f"{counts} in {time.monotonic() - start:.0f} s: nothing lost, repeated or wrong")


if __name__ == "__main__":
    main()

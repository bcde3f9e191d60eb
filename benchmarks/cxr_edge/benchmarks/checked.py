"""A benchmark together with its limits: what `cxr-edge bench` runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_edge.benchmarks.compare.against import Progress, against, pairs
from cxr_edge.benchmarks.compare.sides import Side, checkout, other_side, revision_of_code
from cxr_edge.benchmarks.compare.verdict import Comparison
from cxr_edge.benchmarks.regression import Baseline, Check, Limits, check_of
from cxr_edge.benchmarks.suite import SCHEMA_VERSION, Options, benchmark, machine
from cxr_edge.runtime.errors import CxrEdgeWarning, UsageError
from cxr_edge.runtime.predictor import packaged_model

#: Limits of a slowdown by default: in turns, and against absolute figures of another day.
IN_TURNS, ABSOLUTE = 1.05, 1.25


def measured(
    bundle: Path | None, images: Sequence[Path], options: Options, baseline: Path | None, max_slowdown: float | None,
    budget: Path | None, progress: Progress,
) -> tuple[dict[str, Any], list[Check]]:  # fmt: skip
    """Measure each file of a bundle, then compare with the baseline and the budget."""
    limits = Limits.read(baseline, max_slowdown or ABSOLUTE, budget)
    folder = bundle or packaged_model()
    record = benchmark(folder, images, options, progress)
    if limits.baseline is None:
        return record, limits.check(record)
    if limits.baseline.side is None:
        warnings.warn(limits.baseline.warning, CxrEdgeWarning, stacklevel=2)
        return record, limits.check(record)
    found = _with_baseline(limits.baseline, folder, images, options, max_slowdown or IN_TURNS, progress)
    return record | {"comparisons": [asdict(each) for each in found]}, limits.check(record, found)


def compared(
    other: str, bundle: Path | None, images: Sequence[Path], options: Options, max_slowdown: float | None,
    progress: Progress,
) -> tuple[dict[str, Any], list[Check]]:  # fmt: skip
    """Compare each file in turns with that of another bundle or revision."""
    folder = bundle or packaged_model()
    with other_side(other, folder, packaged=bundle is None) as there:
        here = Side("here", folder.resolve())
        files, left_out = pairs(here, there, options.engine)
        found = against(here, there, files, images, options.threads, max_slowdown or IN_TURNS, progress)
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": "against",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "revision": revision_of_code(),
        "bundle": str(folder),
        "other": other,
        "images": len(images),
        "passed_over": left_out,
        "comparisons": [asdict(each) for each in found],
    }
    return record, [check_of(each) for each in found]


def _with_baseline(
    baseline: Baseline, bundle: Path, images: Sequence[Path], options: Options, limit: float, progress: Progress
) -> list[Comparison]:
    """Run the bundle of a baseline again, with the code that measured it where that can be had."""
    assert baseline.side is not None
    here = Side("here", bundle.resolve())
    with ExitStack() as stack:
        there = _with_its_code(baseline, baseline.side, stack)
        files, _ = pairs(here, there, options.engine)
        return against(here, there, files, images, options.threads, limit, progress)


def _with_its_code(baseline: Baseline, side: Side, stack: ExitStack) -> Side:
    if baseline.revision == revision_of_code() is not None:
        return side
    try:
        return replace(side, code=stack.enter_context(checkout(str(baseline.revision))))
    except UsageError:
        warnings.warn(
            f"the code of the baseline (commit {baseline.revision or 'unknown'}) is not here: its bundle runs with the "
            "present code, so only its files are compared, not the code. Fetch the commit, or name it with --against",
            CxrEdgeWarning,
            stacklevel=2,
        )
        return side

"""Reading of decisions as `cxr-edge predict` writes them: JSON lines, a JSON array or CSV."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from cxr_edge.common.reference import Measured
from cxr_edge.runtime.bundles.bundle import Bundle, Manifest
from cxr_edge.runtime.cli.batch import facts_path
from cxr_edge.runtime.errors import DataError

#: Largest difference between a threshold in a row and in the bundle.
ROUNDED = 1e-6
#: Largest difference of a row's probability from that of its logit in this bundle. Int8 files round both.
SAME_MODEL = 0.05


@dataclass(frozen=True)
class Decision:
    """One row: what the model said about one image.

    `day` is the date of the row's `time` (ISO 8601), or None. `evidence` is NaN if the row has none. `lungs` is None
    if the model does not find them.
    """

    path: str
    day: str | None
    label: str
    logit: float
    novelty: float
    unlike: str | None
    evidence: float
    lungs: str | None


@dataclass(frozen=True)
class Decisions:
    """The rows of all files in their order, and what was left out.

    Attributes
    ----------
    rows
        The decisions.
    operating_point
        Name of the operating point of all rows.
    failed, broken
        Number of rows that are errors of images, and of lines that are no rows.
    checked
        Whether each file has a `FILE.run.json` that names a model file of the bundle.
    """

    rows: tuple[Decision, ...]
    operating_point: str
    failed: int
    broken: int
    checked: bool


def read_decisions(files: Sequence[Path], bundle: Bundle) -> Decisions:
    """Read files of decisions, in the order given.

    Raises
    ------
    DataError
        If a file cannot be read or has no usable row, if its rows are of another model or of several operating
        points, or if their operating point is not in the bundle.
    """
    rows: list[Decision] = []
    points: Counter[str] = Counter()
    failed = broken = 0
    checked = [_check_model(file, bundle) for file in files]
    for file in files:
        before = len(rows)
        for number, row in _raw_rows(file):
            if row is not None and row.get("error"):
                failed += 1
            elif row is None or (decision := _decision(row)) is None:
                broken += 1
            else:
                _check_row(row, f"{file}: row {number}", bundle.manifest)
                points[str(row["operating_point"])] += 1
                rows.append(decision)
        if len(rows) == before:
            raise DataError(f"{file}: found no row with a decision, expected those of `cxr-edge predict -o`")
    if len(points) > 1:
        found = ", ".join(f"{name} ({count} rows)" for name, count in points.most_common())
        raise DataError(
            f"{files[0]}: found rows of several operating points: {found}; expected one; monitor each by itself"
        )
    return Decisions(tuple(rows), next(iter(points)), failed, broken, all(checked))


def measured(rows: Iterable[Decision]) -> Measured:
    """The numbers of rows as arrays."""
    rows = list(rows)
    logit, novelty, evidence = (
        np.array([getattr(row, name) for row in rows]) for name in ("logit", "novelty", "evidence")
    )
    if not any(row.lungs for row in rows):
        return Measured(logit, novelty)
    return Measured(logit, novelty, evidence, np.array([row.lungs == "both" for row in rows]))


def _check_model(file: Path, bundle: Bundle) -> bool:
    """Compare the sha256 that `predict -o` recorded with the bundle; return whether there was one."""
    path = facts_path(file)
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_bytes())["model_sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: found no model_sha256 ({error!r}), expected that of `predict -o`; delete it"
        ) from error
    if found not in {model.sha256 for model in bundle.manifest.all_files}:
        raise DataError(
            f"{file}: its model has the sha256 {str(found)[:12]}…, expected one of the files of {bundle.folder}; name "
            "the bundle that made these decisions with -m, and monitor the decisions of each model in a call of its own"
        )
    return True


def _check_row(row: Mapping[str, Any], where: str, manifest: Manifest) -> None:
    """Refuse a row of another operating point or model."""
    name, threshold = str(row["operating_point"]), float(row["threshold"])
    known = {point.name: point.threshold for point in manifest.operating_points}
    if abs(known.get(name, math.inf) - threshold) > ROUNDED:
        points = ", ".join(f"{point} at {value:.6f}" for point, value in known.items())
        raise DataError(
            f"{where}: found the operating point {name} at {threshold:.6f}, expected one of: {points}; name the bundle "
            "that made these decisions with -m"
        )
    expected = float(expit(float(row["logit"]) / manifest.temperature))
    if abs(float(row["probability"]) - expected) > SAME_MODEL:
        raise DataError(
            f"{where}: found the probability {float(row['probability']):.4f}, expected {expected:.4f} for its logit "
            "and the temperature of the bundle; name the bundle that made these decisions with -m"
        )


def _decision(row: Mapping[str, Any]) -> Decision | None:
    """The decision of a row; None if a field is missing or of a wrong type."""
    try:
        values = {name: float(row[name]) for name in ("logit", "novelty", "probability", "threshold")}
        if not all(map(math.isfinite, values.values())) or not row["label"] or not row["operating_point"]:
            return None
        share = row.get("evidence_in_lungs")
        return Decision(
            path=str(row["path"]),
            day=str(row["time"])[:10] if row.get("time") else None,
            label=str(row["label"]),
            logit=values["logit"],
            novelty=values["novelty"],
            unlike=row.get("unlike") or None,
            evidence=math.nan if share in (None, "") else float(share),
            lungs=row.get("lungs_found") or None,
        )
    except (LookupError, TypeError, ValueError):
        return None


def _raw_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Number and content of each row; None for a line that is none."""
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            if file.suffix.lower() == ".csv":
                yield from enumerate(csv.DictReader(stream), 1)
            elif file.suffix.lower() == ".json":
                found = json.load(stream)
                rows = found if isinstance(found, list) else [found]
                yield from enumerate((row if isinstance(row, dict) else None for row in rows), 1)
            else:
                yield from enumerate((_parsed(line) for line in stream if line.strip()), 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); name a file of decisions") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected decisions of `cxr-edge predict -o`") from error


def _parsed(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None

"""Columns of inputs and of the rows of a result; `docs/archive.md` explains each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from cxr_edge.runtime.cli.journal import Facts
    from cxr_edge.runtime.prediction import Prediction

#: It increases when a column is renamed, removed, or changes its meaning. New columns do not change it.
SCHEMA_VERSION = 1
#: Number of cells of a heatmap, 7×7, row by row.
CELLS = 49
#: Key of the schema version, and of the facts of the run (JSON), in the metadata of each Parquet file.
VERSION_KEY, FACTS_KEY = b"cxr_edge.schema_version", b"cxr_edge.run"
#: Longer messages of errors are cut, so that the size of a row is bounded.
MAX_MESSAGE = 1000

_TEXT, _NUMBER, _MS = pa.string(), pa.float64(), pa.float32()
_TIME = pa.timestamp("us", tz="UTC")

#: What a source says about an input. `size` (bytes) and `version` (ETag, or modification time of a local file in ns)
#: are null if the source does not say. `archive` is the URI of the tar file for its members, and null otherwise.
INPUTS = pa.schema(
    [
        ("uri", _TEXT),
        ("size", pa.int64()),
        ("version", _TEXT),
        ("archive", _TEXT),
        ("study", _TEXT),
        ("patient", _TEXT),
        ("true_label", _TEXT),
        ("time", _TIME),
    ]
)
#: One row of the result.
ROWS = pa.schema(
    [
        *INPUTS,
        ("bytes", pa.int64()),
        ("sha256", _TEXT),
        ("label", _TEXT),
        ("probability", _NUMBER),
        ("logit", _NUMBER),
        ("novelty", _NUMBER),
        ("in_distribution", pa.bool_()),
        ("unlike", _TEXT),
        ("operating_point", _TEXT),
        ("threshold", _NUMBER),
        ("rule_out", _NUMBER),
        ("heatmap", pa.list_(pa.float32(), CELLS)),
        ("lungs_found", _TEXT),
        ("evidence_in_lungs", _NUMBER),
        ("calibrated", _TEXT),
        ("site_probability", _NUMBER),
        ("error_type", _TEXT),
        ("error_message", _TEXT),
        ("model_sha256", _TEXT),
        ("engine", _TEXT),
        ("precision", _TEXT),
        ("cxr_edge", _TEXT),
        ("scored_at", _TIME),
        ("read_ms", _MS),
        ("decode_ms", _MS),
        ("preprocess_ms", _MS),
        ("inference_ms", _MS),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
#: Columns that are taken from a `Prediction` under the same name.
PREDICTED = (
    "label", "probability", "logit", "novelty", "in_distribution", "unlike", "lungs_found", "evidence_in_lungs",
    "calibrated", "site_probability",
)  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What was read for an input: sha256 (hex) and number of bytes, None if it could not be read, and milliseconds."""

    sha256: str | None
    bytes: int | None
    read_ms: float


def row_of(
    entry: Mapping[str, Any], content: Content, result: Prediction | Exception, facts: Facts, now: datetime
) -> dict[str, Any]:
    """The row of one input; a column that `result` does not have is null.

    Parameters
    ----------
    entry
        The input, with the columns of `INPUTS`.
    result
        The decision, or why there is none.
    """
    row = {
        **entry,
        "sha256": content.sha256,
        "bytes": content.bytes,
        "read_ms": content.read_ms,
        "scored_at": now,
        "operating_point": facts.operating_point,
        "threshold": facts.threshold,
        "rule_out": facts.rule_out,
        "model_sha256": facts.model_sha256,
        "engine": facts.engine,
        "precision": facts.precision,
        "cxr_edge": facts.cxr_edge,
    }
    if isinstance(result, Exception):
        return row | {"error_type": type(result).__name__, "error_message": printable(str(result))[:MAX_MESSAGE]}
    row |= {name: getattr(result, name) for name in PREDICTED}
    row |= {f"{stage}_ms": result.timings_ms[stage] for stage in ("decode", "preprocess", "inference")}
    return row | {"heatmap": result.heatmap.ravel()}


def table_of(rows: Sequence[Mapping[str, Any]], facts_json: str) -> pa.Table:
    """Rows as a table with the columns of `ROWS`; its metadata has the schema version and the facts of the run."""
    metadata = {**ROWS.metadata, FACTS_KEY: facts_json.encode()}
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in ROWS]
    return pa.table(columns, schema=ROWS.with_metadata(metadata))


def printable(text: str) -> str:
    """A text that can be written as UTF-8; bytes of a file name that are not UTF-8 become `\\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""The numbers of `cxr-edge score report`: counts of all rows by DuckDB; distances and figures of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from cxr_edge.archive.storage import ROWS_FOLDER, Output
from cxr_edge.common import drift
from cxr_edge.common.metrics import Cases, Estimate, decision_metrics, score_metrics
from cxr_edge.common.reference import Measured
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import UsageError

SCHEMA_VERSION = 1
#: Largest number of rows for distances from the reference, and for figures with labels: their bootstrap intervals take
#: seconds for so many. The sampling error of a KS distance is below 0.01 then.
DRIFT_ROWS, LABELLED_ROWS = 10_000, 20_000
#: Number of images in each gallery, and of rows in tables.
SHOWN, LISTED = 8, 20

#: Numbers of any group of rows.
COUNTS = """
    count(*) AS rows, count(error_type) AS errors,
    count(*) FILTER (WHERE label = $positive) AS pneumonia,
    count(*) FILTER (WHERE label = 'UNSURE') AS unsure,
    count(*) FILTER (WHERE NOT in_distribution) AS novel
"""


@dataclass(frozen=True)
class Group:
    """Numbers of a group of rows; shares are those of the rows without error, except that of the errors."""

    name: str
    rows: int
    errors: int
    pneumonia: int
    unsure: int
    novel: int

    def share(self, what: str) -> float:
        """Share of `errors`, `pneumonia`, `unsure` or `novel`; 0 if there are no rows."""
        return getattr(self, what) / max(1, self.rows if what == "errors" else self.rows - self.errors)


@dataclass(frozen=True)
class Distance:
    """Distance of one number from the reference, with 95 % intervals (low, high)."""

    ks: float
    ks_interval: tuple[float, float]
    psi: float
    psi_interval: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One image of a gallery."""

    uri: str
    sha256: str
    label: str
    probability: float
    novelty: float
    unlike: str | None
    heatmap: Sequence[float]


@dataclass(frozen=True)
class Report:
    """All numbers of a result.

    Attributes
    ----------
    inputs
        Number of distinct URIs; it equals the number of rows.
    studies
        Number of studies, and of those with an image that is called pneumonia; None if no row names a study.
    parts, times
        Groups by file, in the order of URIs, and by time; `times` is empty if no row has one.
    errors
        Most frequent errors: type, an example, and how often.
    pneumonia_in_reference
        Share of pneumonia at which the reference fits the logits best; None without a reference.
    distances
        By number: `logit`, `novelty`, `evidence_in_lungs`.
    figures
        The figures of `evaluate`; empty without labels.
    """

    target: str
    bundle: Bundle
    operating_point: str
    threshold: float
    total: Group
    inputs: int
    studies: tuple[int, int] | None
    parts: tuple[Group, ...]
    times: tuple[Group, ...]
    errors: tuple[tuple[str, str, int], ...]
    pneumonia_in_reference: float | None
    distances: dict[str, Distance]
    labelled: int
    figures: dict[str, Estimate]
    novel: tuple[Case, ...]
    close: tuple[Case, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Content of `--format json`."""
        left_out = ("bundle", "novel", "close")
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {"schema_version": SCHEMA_VERSION, "bundle": self.bundle.manifest.name, **found}


def make_report(target: str, model: Path | None = None, trusted: Path | None = None) -> Report:
    """Compute the report of a result.

    Raises
    ------
    UsageError
        If there are no rows, an input has several, or they were made by another model.
    """
    from cxr_edge.runtime.predictor import packaged_model

    output = Output(target)
    bundle = Bundle.open(model or packaged_model(), trusted)
    with _connected(output) as rows:
        _check_rows(rows, bundle, target)
        query = _Query(rows, bundle)
        point, threshold = query.one("SELECT any_value(operating_point), any_value(threshold) FROM scores")
        total = query.groups("'all'")[0]
        labels = _cases(query)
        notes, distances, share = _distances(query)
        return Report(
            target=target, bundle=bundle, operating_point=point, threshold=threshold, total=total,
            inputs=query.one("SELECT count(DISTINCT uri) FROM scores")[0],
            studies=_studies(query), parts=query.groups("part"), times=_times(query), errors=_errors(query),
            pneumonia_in_reference=share, distances=distances,
            labelled=len(labels.labels), figures=_figures(labels, threshold),
            novel=query.cases("novelty DESC"), close=query.cases(f"abs(probability - {threshold!r})"), notes=notes,
        )  # fmt: skip


def _connected(output: Output) -> duckdb.DuckDBPyConnection:
    """A connection with the view `scores` of all rows and the name of their file, `part`."""
    paths = [output.path(ROWS_FOLDER, name) for name in output.parts()]
    if not paths:
        raise UsageError(f"{output.url}: found no rows, expected the result of `cxr-edge score`; check the path")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    if not output.is_local:
        connection.register_filesystem(output.filesystem)
        paths = [output.filesystem.unstrip_protocol(path) for path in paths]
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    connection.execute(
        f"CREATE VIEW scores AS SELECT *, parse_filename(filename) AS part FROM read_parquet([{listed}], filename=true)"
    )
    return connection


@dataclass(frozen=True)
class _Query:
    """Questions about the rows of a result."""

    rows: duckdb.DuckDBPyConnection
    bundle: Bundle

    def all(self, sql: str, **values: object) -> list[Any]:
        return self.rows.execute(sql, values or None).fetchall()

    def one(self, sql: str) -> Any:
        return self.all(sql)[0]

    def groups(self, by: str, condition: str = "true") -> tuple[Group, ...]:
        """Groups of rows by an expression, in its order."""
        sql = f"SELECT {by} AS name, {COUNTS} FROM scores WHERE {condition} GROUP BY name ORDER BY name"
        found = self.all(sql, positive=self.bundle.manifest.classes[1])
        return tuple(Group(str(row[0]), *row[1:]) for row in found)

    def numpy(self, columns: str, condition: str, by: str, most: int) -> dict[str, Any]:
        """Columns of at most `most` rows, which depend on a hash of `by` only."""
        sql = f"""SELECT {columns} FROM scores WHERE error_type IS NULL AND {condition}
                  ORDER BY hash({by}), uri LIMIT {most}"""
        return dict(self.rows.execute(sql).fetchnumpy())

    def cases(self, order: str) -> tuple[Case, ...]:
        """The first images in an order."""
        names = [field.name for field in fields(Case)]
        sql = f"""SELECT {", ".join(names)} FROM scores
                  WHERE error_type IS NULL ORDER BY {order}, uri LIMIT {SHOWN}"""
        return tuple(Case(**dict(zip(names, row, strict=True))) for row in self.all(sql))


def _check_rows(rows: duckdb.DuckDBPyConnection, bundle: Bundle, target: str) -> None:
    """Refuse rows of another model, and inputs with several rows."""
    known = {file.sha256 for file in bundle.manifest.all_files}
    found = [sha for (sha,) in rows.execute("SELECT DISTINCT model_sha256 FROM scores").fetchall()]
    if len(found) != 1 or found[0] not in known:
        shown = ", ".join(f"{str(sha)[:12]}…" for sha in found)
        raise UsageError(
            f"{target}: its rows were made by the model {shown}, expected one of the files of {bundle.folder}; "
            "name the bundle that made them with -m"
        )
    twice = rows.execute("SELECT uri FROM scores GROUP BY uri HAVING count(*) > 1 LIMIT 1").fetchone()
    if twice:
        raise UsageError(
            f"{target}: found several rows of {twice[0]}, expected one; two runs with different --shard "
            "wrote it at the same time. Score into a new folder"
        )


def _studies(query: _Query) -> tuple[int, int] | None:
    """Number of studies, and of those with an image that is called pneumonia."""
    found, positive = query.all(
        "SELECT count(DISTINCT study), count(DISTINCT study) FILTER (WHERE label = $positive) FROM scores",
        positive=query.bundle.manifest.classes[1],
    )[0]
    return (found, positive) if found else None


def _times(query: _Query) -> tuple[Group, ...]:
    """Groups by day, month or year, whichever gives at most about 60."""
    days = query.one("SELECT date_diff('day', min(time), max(time)) FROM scores")[0]
    if days is None:
        return ()
    form = "%Y-%m-%d" if days <= 60 else "%Y-%m" if days <= 60 * 30 else "%Y"
    return query.groups(f"strftime(time, '{form}')", "time IS NOT NULL")


def _errors(query: _Query) -> tuple[tuple[str, str, int], ...]:
    """Most frequent kinds of errors: their type, one message, and how often."""
    # The address at the start of a message differs; what follows it says the kind.
    return tuple(
        query.all(
            """SELECT error_type, min(error_message), count(*) AS n FROM scores WHERE error_type IS NOT NULL
               GROUP BY error_type, regexp_replace(replace(error_message, uri, ''), '[0-9]+', '', 'g')
               ORDER BY n DESC, error_type LIMIT $listed""",
            listed=LISTED,
        )
    )


def _distances(query: _Query) -> tuple[tuple[str, ...], dict[str, Distance], float | None]:
    """Notes, distances from the reference, and its best share of pneumonia."""
    reference = query.bundle.manifest.reference
    if reference is None:
        note = "The bundle has no reference, so drift cannot be measured; bundles of this version of `export` have one."
        return (note,), {}, None
    found = query.numpy("logit, novelty, evidence_in_lungs, lungs_found", "true", "uri", DRIFT_ROWS)
    if not len(found["logit"]):
        return ("No row has a decision, so drift cannot be measured.",), {}, None
    measured = _measured(found)
    share, distances = drift.distances(measured, reference)
    ends = drift.intervals(measured, reference, (0.0, 1.0))
    return (
        (f"Drift is that of {len(measured.logit):,} rows, a random sample if there are more.",),
        {
            name: Distance(
                each.ks, (ends[name][0].ks, ends[name][1].ks), each.psi, (ends[name][0].psi, ends[name][1].psi)
            )
            for name, each in distances.items()
        },
        share,
    )


def _measured(found: dict[str, Any]) -> Measured:
    logit, novelty = (np.ma.filled(found[name], np.nan) for name in ("logit", "novelty"))
    lungs = found["lungs_found"]
    if np.ma.getmaskarray(lungs).all():
        return Measured(logit, novelty)
    evidence = np.ma.filled(found["evidence_in_lungs"], np.nan)
    return Measured(logit, novelty, evidence, np.ma.filled(lungs, "") == "both")


def _cases(query: _Query) -> Cases:
    """The rows with a label that is a class: its name, or its number 0 or 1."""
    classes = query.bundle.manifest.classes
    names = {name.upper(): number for number, name in enumerate(classes)} | {"0": 0, "1": 1}
    listed = ", ".join(f"'{name}'" for name in names)
    condition = f"upper(trim(true_label)) IN ({listed})"
    patient = "coalesce(patient, study, uri)"
    found = query.numpy(
        f"upper(trim(true_label)) AS truth, logit, probability, {patient} AS patient", condition, patient, LABELLED_ROWS
    )
    labels = np.array([names[str(each)] for each in found["truth"]], np.int64)
    numbers = [np.ma.filled(found[name], np.nan) for name in ("logit", "probability")]
    return Cases(labels, numbers[0], numbers[1], np.array([str(each) for each in found["patient"]]))


def _figures(cases: Cases, threshold: float) -> dict[str, Estimate]:
    """The figures of `evaluate`; those that need both classes are left out if one is missing."""
    if not len(cases.labels):
        return {}
    scores = score_metrics(cases) if len(set(cases.labels.tolist())) == 2 else {}
    return {**scores, **decision_metrics(cases, threshold)}


def unusual(groups: Sequence[Group]) -> list[Group]:
    """At most `LISTED` groups: those with the largest shares of errors, then of novel images."""
    return sorted(groups, key=lambda group: (group.share("errors"), group.share("novel")), reverse=True)[:LISTED]

"""Manifests (CSV, Parquet) and lists (.txt) of URIs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cxr_edge.archive.places import absolute, is_remote, naming_source, open_place
from cxr_edge.archive.schema import INPUTS
from cxr_edge.runtime.errors import UsageError

MANIFESTS, LISTS = (".csv", ".parquet"), (".txt",)
#: Column of a manifest -> column of `INPUTS`; all but `uri` are optional, and any other column is ignored.
COLUMNS = {
    "uri": "uri", "size": "size", "etag": "version", "study": "study", "patient": "patient", "label": "true_label",
    "time": "time",
}  # fmt: skip


def read_manifest(source: str) -> pa.Table:
    """Read a manifest; relative URIs are relative to its folder.

    Raises
    ------
    UsageError
        If it cannot be read, has no column `uri`, or a value that does not fit its column.
    """
    content = _content(source)
    try:
        if source.lower().endswith(".csv"):
            types = {name: INPUTS.field(column).type for name, column in COLUMNS.items()}
            options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(BytesIO(content), convert_options=options)
        else:
            table = pq.read_table(BytesIO(content))
        if "uri" not in table.column_names:
            raise UsageError(
                f"{source}: found the columns {', '.join(table.column_names)}, expected one named uri (and optionally "
                f"{', '.join(name for name in COLUMNS if name != 'uri')}); rename the column that has the addresses"
            )
        return _with_uris(_renamed(table), source)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{source}: cannot be read as a manifest ({error}); correct the file") from error


def read_list(source: str) -> pa.Table:
    """Read a text file with one URI in each line; empty lines and lines that start with # are ignored."""
    lines = [line.strip() for line in _content(source).decode("utf-8", "surrogateescape").splitlines()]
    uris = [line for line in lines if line and not line.startswith("#")]
    return _with_uris(_renamed(pa.table({"uri": pa.array(uris, pa.string())})), source)


def _content(source: str) -> bytes:
    with naming_source(source):
        if not is_remote(source):
            return Path(source.removeprefix("file://")).read_bytes()
        filesystem, path = open_place(source)
        return bytes(filesystem.cat_file(path))


def _renamed(table: pa.Table) -> pa.Table:
    """The columns of `INPUTS`, null where the manifest has none."""
    names = {column: name for name, column in COLUMNS.items()}
    columns = [
        table[names[field.name]].cast(field.type)
        if names.get(field.name) in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in INPUTS
    ]
    return pa.table(columns, schema=INPUTS)


def _with_uris(table: pa.Table, source: str) -> pa.Table:
    """Make relative URIs absolute, and refuse empty ones."""
    if missing := sum(not uri for uri in table["uri"].to_pylist()):
        raise UsageError(f"{source}: found {missing} rows without a URI, expected one in each; remove these rows")
    uris = [_absolute(uri, source) for uri in table["uri"].to_pylist()]
    return table.set_column(0, INPUTS.field("uri"), pa.array(uris, pa.string()))


def _absolute(uri: str, source: str) -> str:
    if is_remote(uri) or uri.startswith("file://"):
        return uri
    if is_remote(source):
        protocol, _, rest = source.partition("://")
        return f"{protocol}://{urljoin('//' + rest, uri).removeprefix('//')}"
    return absolute(Path(source.removeprefix("file://")).parent / uri)

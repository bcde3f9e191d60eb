"""What remains to be scored, in blocks: each block becomes one Parquet file, whose writing is the commit.

A block is a range of the sorted inputs, and its file is named after its inputs. Two runs over the same inputs therefore
have the same blocks, and a block that is written twice replaces itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_edge.archive.schema import ROWS
from cxr_edge.archive.sources import TAR
from cxr_edge.archive.storage import ROWS_FOLDER, Output
from cxr_edge.runtime.errors import UsageError

#: Bounds of the number of rows in a file. Few rows are lost when a worker dies; many files slow readers down. A row
#: takes less than 2 kB, so that no file is larger than 32 MB.
FEWEST, MOST, FILES = 128, 16384, 64
#: Number of files whose keys are read at a time.
READERS = 16
#: What is known of the rows of a result; `part` is the name of their file.
DONE = pa.schema(
    [
        *(ROWS.field(name) for name in ("uri", "size", "version", "archive", "error_type", "model_sha256")),
        pa.field("part", pa.string()),
    ]
)


@dataclass(frozen=True)
class Block:
    """The inputs of one Parquet file.

    Attributes
    ----------
    name
        Name of the file.
    inputs
        Table with the columns of `INPUTS`; one row if it is a tar file.
    is_tar
        Whether the rows are the members of a tar file.
    replaces
        Whether the file exists, and its rows of other inputs stay.
    """

    name: str
    inputs: pa.Table
    is_tar: bool = False
    replaces: bool = False


@dataclass(frozen=True)
class Plan:
    """What remains to be done.

    Attributes
    ----------
    inputs
        Number of inputs, where a tar file counts as one.
    done
        Number of inputs that have their row.
    changed
        Number of inputs whose row will be replaced, because their size or version changed, or to try again.
    others
        Number of rows of inputs that are not among these.
    """

    blocks: tuple[Block, ...]
    inputs: int
    done: int
    changed: int
    others: int


def make_plan(inputs: pa.Table, output: Output, model_sha256: str, retry_errors: bool = False) -> Plan:
    """Compare the inputs with the rows of the result.

    Raises
    ------
    UsageError
        If rows were made by another model.
    """
    done = read_done(output)
    _check_model(done, model_sha256, output)
    is_tar = pc.ends_with(pc.utf8_lower(inputs["uri"]), TAR)
    tars, files = inputs.filter(is_tar), inputs.filter(pc.invert(is_tar))
    members = done.filter(pc.is_valid(done["archive"]))
    rows = done.filter(pc.is_null(done["archive"]))
    tar_blocks = list(_tar_blocks(tars, members, retry_errors))
    old, new = _sort_out(files, rows, retry_errors)
    blocks = (*_new_blocks(files, new), *_replacing_blocks(files, old, rows), *tar_blocks)
    left = sum(block.inputs.num_rows for block in blocks)
    known = inputs["uri"].combine_chunks()
    stray = pc.invert(pc.is_in(pc.coalesce(done["archive"], done["uri"]), known))
    return Plan(blocks, inputs.num_rows, inputs.num_rows - left, pc.sum(old).as_py() or 0, pc.sum(stray).as_py() or 0)


def read_done(output: Output) -> pa.Table:
    """Which inputs have a row: key columns, whether it is an error, and the name of its file (`part`)."""
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda name: _keys_in(output, name), output.parts()))
    return pa.concat_tables([DONE.empty_table(), *tables])


def _keys_in(output: Output, name: str) -> pa.Table:
    # `pyarrow.dataset` would import pandas, which takes longer than all of this.
    try:
        with output.filesystem.open(output.path(ROWS_FOLDER, name), "rb") as stream:
            table = pq.ParquetFile(stream).read([field.name for field in DONE if field.name != "part"])
        part = pa.array([name], pa.string()).take(pa.array([0] * table.num_rows, pa.int64()))
        return table.append_column("part", part).select(DONE.names).cast(DONE)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UsageError(
            f"{output.url}/{ROWS_FOLDER}/{name}: found no result of `cxr-edge score` ({error}); move the file away"
        ) from error


def _check_model(done: pa.Table, model_sha256: str, output: Output) -> None:
    if found := [each for each in pc.unique(done["model_sha256"]).to_pylist() if each != model_sha256]:
        raise UsageError(
            f"{output.url}: found rows of the model {str(found[0])[:12]}…, expected {model_sha256[:12]}…; name another "
            "OUT with -o"
        )


def key_of(table: pa.Table) -> pa.ChunkedArray:
    """URI, size and version as one text."""
    size = pc.coalesce(pc.cast(table["size"], pa.string()), pa.scalar(""))
    version = pc.coalesce(table["version"], pa.scalar(""))
    return pc.binary_join_element_wise(table["uri"], size, version, "\t")


def _sort_out(files: pa.Table, rows: pa.Table, retry_errors: bool) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Masks over the inputs: whose row has to be replaced, and which have no row."""
    good = rows.filter(pc.is_null(rows["error_type"])) if retry_errors else rows
    has_row = pc.is_in(files["uri"], rows["uri"].combine_chunks())
    is_done = pc.is_in(key_of(files), key_of(good).combine_chunks())
    return pc.and_(has_row, pc.invert(is_done)), pc.invert(has_row)


def rows_per_file(inputs: int) -> int:
    """Number of rows in a file: at least `FILES` files, if they are not too small."""
    return max(FEWEST, min(MOST, -(-inputs // FILES)))


def _new_blocks(files: pa.Table, is_new: pa.ChunkedArray) -> Iterator[Block]:
    """Blocks of the inputs without a row. Their borders depend on all inputs, so that each run has the same."""
    size = rows_per_file(files.num_rows)
    for start in range(0, files.num_rows, size):
        inputs = files.slice(start, size).filter(is_new.slice(start, size))
        if inputs.num_rows:
            yield Block(f"part-{start // size:06}-{_digest(key_of(inputs))}.parquet", inputs)


def _replacing_blocks(files: pa.Table, is_old: pa.ChunkedArray, rows: pa.Table) -> Iterator[Block]:
    """One block for each file that has rows to replace."""
    changed = files.filter(is_old)
    if not changed.num_rows:
        return
    parts = rows["part"].take(pc.index_in(changed["uri"], rows["uri"].combine_chunks()))
    for name in pc.unique(parts).to_pylist():
        yield Block(name, changed.filter(pc.equal(parts, name)), replaces=True)


def _tar_blocks(tars: pa.Table, members: pa.Table, retry_errors: bool) -> Iterator[Block]:
    """A block for each tar file that has no rows, or rows of another version."""
    stamps = dict(zip(members["archive"].to_pylist(), members["version"].to_pylist(), strict=True))
    failed = set(members.filter(pc.is_valid(members["error_type"]))["archive"].to_pylist()) if retry_errors else set()
    for number, entry in enumerate(tars.to_pylist()):
        uri = entry["uri"]
        if uri in failed or stamps.get(uri) != tar_version(entry):
            yield Block(f"tar-{blake2b(uri.encode(), digest_size=16).hexdigest()}.parquet", tars.slice(number, 1), True)


def tar_version(entry: dict[str, Any]) -> str:
    """The version of all members of a tar file."""
    return f"{entry['size']} {entry['version']}"


def _digest(keys: pa.ChunkedArray) -> str:
    return blake2b("\n".join(keys.to_pylist()).encode(), digest_size=12).hexdigest()

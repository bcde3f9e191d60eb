"""Sources of `cxr-edge score` as a table of inputs: folders, globs, files, tar files, object stores, manifests."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from cxr_edge.archive.manifests import LISTS, MANIFESTS, read_list, read_manifest
from cxr_edge.archive.places import absolute, is_remote, naming_source, open_place
from cxr_edge.archive.schema import INPUTS
from cxr_edge.runtime.errors import UsageError
from cxr_edge.runtime.imaging.folders import SUFFIXES, find_images

TAR = ".tar"
#: URI, size and version of a file that was found.
Found: TypeAlias = "tuple[str, int | None, str | None]"


def find_inputs(sources: Sequence[str]) -> pa.Table:
    """All inputs of the sources, each URI once, sorted by URI.

    A source is a folder, a glob, an image file, a tar file, a manifest (CSV or Parquet), or a list of URIs (.txt); on
    this machine or at a URL. A tar file is one input here; its members are found when it is read.

    Returns
    -------
    A table with the columns of `INPUTS`.

    Raises
    ------
    UsageError
        If a source has no input, or cannot be read.
    """
    tables = []
    for source in sources:
        table = _inputs_of(source)
        if not table.num_rows:
            raise UsageError(f"{source}: found no image files, expected radiographs or .tar files; check the path")
        tables.append(table)
    return _distinct(pa.concat_tables(tables))


def select(inputs: pa.Table, shard: tuple[int, int], sample: float | None, limit: int | None) -> pa.Table:
    """A part of the inputs that depends on their URIs only, so that each call selects the same.

    Parameters
    ----------
    shard
        (i, n): the i-th of n parts of equal size on average, i in 1..n. All n together have each input once.
    sample
        Share of the inputs, in (0, 1]. Tar files stay; their members are sampled when they are read.
    limit
        Number of inputs, the first ones by URI; applied last.
    """
    if shard[1] > 1:
        places = [place(uri, "shard") for uri in inputs["uri"].to_pylist()]
        inputs = inputs.filter(pa.array([int(p * shard[1]) == shard[0] - 1 for p in places], pa.bool_()))
    if sample is not None:
        uris = inputs["uri"].to_pylist()
        inputs = inputs.filter(pa.array([is_tar(uri) or place(uri, "sample") < sample for uri in uris], pa.bool_()))
    return inputs if limit is None else inputs.slice(0, limit)


def is_tar(uri: str) -> bool:
    """Whether an input is a tar file, whose members are the images."""
    return uri.lower().endswith(TAR)


def place(uri: str, purpose: str) -> float:
    """A number in [0, 1) that is uniform over URIs and independent for each purpose."""
    digest = blake2b(uri.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _distinct(table: pa.Table) -> pa.Table:
    """Sort by URI and keep the first row of each; an input that two sources name is scored once."""
    table = table.sort_by("uri").combine_chunks()
    uri = table["uri"].combine_chunks()
    if len(uri) < 2:
        return table
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(uri[1:], uri[:-1])])
    return table.filter(first)


def _inputs_of(source: str) -> pa.Table:
    suffix = PurePosixPath(source).suffix.lower()
    if suffix in MANIFESTS:
        return read_manifest(source)
    if suffix in LISTS:
        return read_list(source)
    return _table(_find_remote(source) if is_remote(source) else _find_local(source))


def _table(found: Iterable[Found]) -> pa.Table:
    uris, sizes, versions = zip(*found, strict=True) if (found := list(found)) else ((), (), ())
    columns = {
        "uri": pa.array(uris, pa.string()),
        "size": pa.array(sizes, pa.int64()),
        "version": pa.array(versions, pa.string()),
    }
    return pa.table([columns.get(f.name, pa.nulls(len(uris), f.type)) for f in INPUTS], schema=INPUTS)


def _find_local(source: str) -> Iterator[Found]:
    """Files of a folder, a glob or a path of this machine."""
    path = Path(source.removeprefix("file://"))
    if path.is_dir():
        yield from map(_local, find_images(path, SUFFIXES | {TAR}))
        return
    if path.is_file():
        yield _local(path)
        return
    for each in sorted(glob.glob(os.fspath(path), recursive=True)):  # noqa: PTH207 (absolute patterns)
        if Path(each).is_file():
            yield _local(Path(each))


def _local(path: Path) -> Found:
    """A file with its size and modification time; both are unknown if it has just vanished."""
    try:
        status = path.stat()
    except OSError:
        return absolute(path), None, None
    return absolute(path), status.st_size, str(status.st_mtime_ns)


def _find_remote(source: str) -> Iterator[Found]:
    """Objects below a URL, or that match a glob."""
    with naming_source(source):
        filesystem, path = open_place(source)
        if glob.has_magic(path):
            found = filesystem.glob(path, detail=True)
        elif filesystem.isfile(path):
            yield _remote(filesystem, filesystem.info(path))
            return
        else:
            found = filesystem.find(path, detail=True)
        for name, info in found.items():
            if info.get("type") == "file" and _may_be_image(name):
                yield _remote(filesystem, info)


def _remote(filesystem: Any, info: dict[str, Any]) -> Found:
    version = next((info[key] for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime") if info.get(key)), None)
    return (
        filesystem.unstrip_protocol(info["name"]),
        info.get("size"),
        None if version is None else str(version).strip('"'),
    )


def _may_be_image(name: str) -> bool:
    """Whether a name is that of an image or a tar file: no object is read to find out.

    Names without a suffix of letters, such as IM0001 and 1.2.840.113, are DICOM files in most archives.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix == TAR or (not suffix[1:].isalpha() and path.name.upper() != "DICOMDIR")


def probe(inputs: pa.Table) -> None:
    """Ask once for each remote place whether its objects can be read, before work starts.

    Raises
    ------
    UsageError
        If credentials fail. An object that is missing is no error here: it becomes a row with an error.
    """
    places: dict[str, str] = {}
    for uri in inputs["uri"].to_pylist():
        if is_remote(uri):
            places.setdefault("/".join(uri.split("/")[:3]), uri)
    for uri in places.values():
        with naming_source(uri, missing_is_fine=True):
            filesystem, path = open_place(uri)
            filesystem.info(path)

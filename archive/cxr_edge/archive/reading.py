"""Reading the bytes of inputs: retries, time limits, and the members of tar files."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timezone
from pathlib import PurePosixPath
from time import sleep
from typing import Any

from cxr_edge.archive.places import is_remote, local_path, open_place
from cxr_edge.archive.planning import tar_version
from cxr_edge.archive.schema import printable
from cxr_edge.runtime.errors import ImageError
from cxr_edge.runtime.imaging.folders import SUFFIXES
from cxr_edge.runtime.imaging.image import in_memory

#: How often an object is read before its row becomes an error, and the longest wait between (seconds).
ATTEMPTS, LONGEST_WAIT = 5, 8.0
#: Files of a sample in a tar file that describe its image (WebDataset), and the largest one that is read (bytes).
SIDECARS, MAX_SIDECAR = frozenset({".cls", ".json"}), 1 << 20
#: Keys of a JSON file in a tar file -> column of the row.
KEYS = {"label": "true_label", "patient": "patient", "study": "study", "time": "time"}


class TransientError(OSError):
    """A failure that may pass: reading is tried again."""


def read_bytes(uri: str, max_pixels: int, timeout: float) -> bytes:
    """The content of an input.

    Parameters
    ----------
    max_pixels
        Local files that are larger than a radiograph of so many pixels can be are refused.
    timeout
        Seconds for one attempt to read an object.

    Raises
    ------
    ImageError
        If it cannot be read, after `ATTEMPTS` attempts unless it is missing or access is denied.
    """
    if not is_remote(uri):
        content, _ = in_memory(local_path(uri), max_pixels)
        assert isinstance(content, bytes)
        return content
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _read_remote(uri, timeout)
        except TransientError as error:
            if attempt == ATTEMPTS:
                raise ImageError(
                    f"{uri}: cannot be read after {ATTEMPTS} attempts ({error}); check the network, then run the same "
                    "command with --retry-errors"
                ) from error
            # Random waits, so that the workers do not come back at the same moment.
            sleep(min(LONGEST_WAIT, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError


def _read_remote(uri: str, timeout: float) -> bytes:
    """One attempt; raises ImageError if another one cannot help."""
    from fsspec.asyn import AsyncFileSystem, sync

    try:
        filesystem, path = open_place(uri)
        if isinstance(filesystem, AsyncFileSystem):
            return bytes(sync(filesystem.loop, filesystem._cat_file, path, timeout=timeout))
        return bytes(filesystem.cat_file(path))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ImageError(f"{uri}: cannot be read ({_short(error)}); check the address and the permissions") from error
    except Exception as error:  # each store has its own exceptions
        status = getattr(error, "status", None)
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
            raise ImageError(
                f"{uri}: cannot be read ({_short(error)}); check the address and the permissions"
            ) from error
        raise TransientError(_short(error) or f"no answer in {timeout:g} s") from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def members(tar: Mapping[str, Any], max_bytes: int) -> Iterator[tuple[dict[str, Any], bytes | ImageError]]:
    """The images in a tar file in the WebDataset layout, in their order.

    Files whose names differ only in their suffix belong together: `0001.jpeg`, `0001.cls` (the label) and `0001.json`
    (`label`, `patient`, `study`, `time`).

    Parameters
    ----------
    tar
        The tar file as an input.
    max_bytes
        Larger members are not read.

    Yields
    ------
    The member as an input, and its content, or why there is none. A tar file that is damaged or cannot be read ends
    with an error for itself, under its own URI.
    """
    uri = tar["uri"]
    common = {**tar, "archive": uri, "version": tar_version(dict(tar))}
    try:
        with _open(uri) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for sample in _samples(archive, max_bytes):
                carried = {name: value for name, value in _described(sample).items() if value is not None}
                for name, (size, content) in sample.items():
                    if _suffix(name) not in SIDECARS:
                        yield {**common, **carried, "uri": f"tar://{printable(name)}::{uri}", "size": size}, content
    except (tarfile.TarError, OSError, EOFError) as error:
        yield common, ImageError(f"{uri}: tar file is damaged or cannot be read ({_short(error)}); copy it again")


def _open(uri: str) -> AbstractContextManager[Any]:
    if not is_remote(uri):
        return local_path(uri).open("rb")
    filesystem, path = open_place(uri)
    stream: AbstractContextManager[Any] = filesystem.open(path, "rb")
    return stream


_Sample = dict[str, tuple[int, "bytes | ImageError"]]


def _samples(archive: tarfile.TarFile, max_bytes: int) -> Iterator[_Sample]:
    """Consecutive files with the same key."""
    sample: _Sample = {}
    last = None
    for info in archive:
        suffix = _suffix(info.name)
        if not info.isfile() or not (suffix in SUFFIXES or suffix in SIDECARS or not suffix[1:].isalpha()):
            continue
        if sample and _key(info.name) != last:
            yield sample
            sample = {}
        last = _key(info.name)
        sample[info.name] = info.size, _content(archive, info, max_bytes if suffix not in SIDECARS else MAX_SIDECAR)
    if sample:
        yield sample


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, limit: int) -> bytes | ImageError:
    stream = archive.extractfile(info) if info.size <= limit else None
    if stream is None:
        return ImageError(
            f"{info.name}: {info.size:,} bytes in a tar file; expected one radiograph of at most {limit:,}"
        )
    return stream.read()


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _key(name: str) -> str:
    """Folder and name without its last suffix."""
    path = PurePosixPath(name)
    return f"{path.parent}/{path.stem}"


def _described(sample: _Sample) -> dict[str, Any]:
    """What the side files of a sample say about its image."""
    found: dict[str, Any] = {}
    for name, (_, content) in sample.items():
        if isinstance(content, ImageError):
            continue
        if _suffix(name) == ".cls":
            found["true_label"] = content.decode("utf-8", "replace").strip()
        elif _suffix(name) == ".json":
            with suppress(ValueError, AttributeError):
                found |= {KEYS[key]: value for key, value in json.loads(content).items() if key in KEYS}
    return {name: moment(value) if name == "time" else str(value) for name, value in found.items() if value is not None}


def moment(text: object) -> datetime | None:
    """A time from ISO 8601 or DICOM (YYYYMMDD), in UTC if it names no zone; None if it is neither."""
    for form in (None, "%Y%m%d"):
        with suppress(ValueError):
            found = datetime.fromisoformat(str(text)) if form is None else datetime.strptime(str(text), form)
            return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
    return None

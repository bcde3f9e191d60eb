"""The journal of an unfinished batch, with which the same command can continue after an interruption.

A journal is a file of JSON lines. The first line records what produces the rows (`Facts`). Each further line is the
row of one image, with the size and modification time of its file. Each line is passed to the operating system at once,
so a killed process loses none. A power failure loses at most the rows of the last `SYNC_SECONDS`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from cxr_edge.runtime.errors import CxrEdgeWarning, UsageError
from cxr_edge.runtime.files import naming

if TYPE_CHECKING:
    from cxr_edge.runtime.predictor import Predictor

#: Size (bytes) and modification time (ns) of an image file; None for standard input and unreadable files.
Stamp: TypeAlias = "tuple[int, int] | None"
#: Rows younger than this may be lost in a power failure. On a memory card, waiting for the disk after each row would
#: take longer than the network.
SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class Facts:
    """What produces the rows of a batch. Two runs share a journal only if their facts are equal.

    Attributes
    ----------
    bundle
        Name in the manifest.
    model, model_sha256
        Name and content of the model file.
    cxr_edge
        Version of cxr-edge.
    """

    bundle: str
    model: str
    model_sha256: str
    engine: str
    precision: str
    operating_point: str
    threshold: float
    cxr_edge: str
    rule_out: float | None = None
    calibrated: str | None = None
    schema_version: int = 2

    @classmethod
    def of(cls, predictor: Predictor) -> Facts:
        """The facts of a predictor."""
        file, point = predictor.file, predictor.operating_point
        return cls(
            predictor.manifest.name, file.path, file.sha256, file.engine, file.precision, point.name, point.threshold,
            version("cxr-edge"), point.rule_out, predictor.manifest.site.date if predictor.manifest.site else None,
        )  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """Position of the row of an image in the journal, and whether it can be reused."""

    offset: int
    stamp: Stamp
    failed: bool


class Journal:
    """Rows on disk, indexed by image; one process at a time may open it.

    Parameters
    ----------
    path
        Path of the journal. It and its folder are created if needed. An incomplete last line is removed.
    facts
        What produces the rows that will be appended.

    Raises
    ------
    UsageError
        If its rows were produced with other facts, if it is not a journal, or if another process writes to it.
    OutputError
        If it cannot be written.
    """

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path = path
        self._entries: dict[str, _Entry] = {}
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = _open_locked(path)
            self._synced = monotonic()
            try:
                self._end = self._read(facts)
                self._stream.truncate(self._end)
                if not self._end:
                    self._write(_header(facts))
            except BaseException:
                self._stream.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def has(self, image: str, stamp: Stamp) -> bool:
        """Whether the image has a row that is not an error and was written for this stamp."""
        entry = self._entries.get(image)
        return entry is not None and not entry.failed and stamp is not None and entry.stamp == stamp

    def append(self, row: Mapping[str, Any], stamp: Stamp) -> None:
        """Append the row of an image; it replaces an earlier row of the same image.

        Raises
        ------
        OutputError
            If the disk is full; the journal then ends after the previous row.
        """
        entry = _Entry(self._end, stamp, "error" in row)
        with naming(self.path):
            self._write(json.dumps({"stamp": stamp, "row": row}).encode() + b"\n")
            if monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = monotonic()
        self._entries[row["path"]] = entry

    def rows(self, images: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of these images, in this order; each image must have one."""
        with self.path.open("rb") as reader:
            for image in images:
                reader.seek(self._entries[image].offset)
                yield json.loads(reader.readline())["row"]

    def delete(self) -> None:
        """Delete the journal when its rows are in the result."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        """Append a complete line or nothing."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._stream.truncate(self._end)
            raise
        self._end += len(line)

    def _read(self, facts: Facts) -> int:
        """Index the existing rows; return the number of bytes in complete lines."""
        end, damaged = 0, 0
        with self.path.open("rb") as reader:
            for line in reader:
                if end == 0:
                    _check_header(self.path, line, facts)
                if not line.endswith(b"\n"):
                    break
                if end and not self._index(line, end):
                    damaged += 1
                end += len(line)
        if damaged:
            warnings.warn(
                f"{self.path}: {damaged} lines are not rows of images; these images are processed again",
                CxrEdgeWarning,
                stacklevel=2,
            )
        return end

    def _index(self, line: bytes, offset: int) -> bool:
        """Index the row in a line; return whether there is one."""
        try:
            entry = json.loads(line)
            row, stamp = entry["row"], entry["stamp"]
            path, failed = row["path"], "error" in row
            if not isinstance(path, str) or not (failed or "label" in row):
                return False
        except (ValueError, TypeError, LookupError, RecursionError):
            return False
        self._entries[path] = _Entry(offset, tuple(stamp) if isinstance(stamp, list) else None, failed)
        return True


def stamp_of(image: str) -> Stamp:
    """Size and modification time of an image file; None if they cannot be read."""
    try:
        status = Path(image).stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return status.st_size, status.st_mtime_ns


def _open_locked(path: Path) -> FileIO:
    """Open a journal for appending and lock it against other processes until it is closed."""
    while True:
        stream = FileIO(path, "a+")
        try:
            _lock(stream)
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            stream.close()
            raise UsageError(
                f"{path}: another cxr-edge is writing to it; wait until it ends, or choose another FILE with -o"
            ) from error
        stream.close()  # another process removed the journal just before it was locked: try again


def _lock(stream: FileIO) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks


def _header(facts: Facts) -> bytes:
    return json.dumps({"run": asdict(facts)}).encode() + b"\n"


def _check_header(path: Path, line: bytes, facts: Facts) -> None:
    """Refuse rows that were produced with other facts; after an incomplete header there are no rows."""
    if _header(facts).startswith(line):
        return
    try:
        found = differences(json.loads(line)["run"], asdict(facts))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: its first line does not say which model made its rows; expected the journal of an interrupted "
            f"`predict -o`, found {line[:40]!r}. Delete it to start again, or choose another FILE with -o"
        ) from error
    raise UsageError(
        f"{path}: the interrupted run had {'; '.join(found)}. A result contains rows of one model only: "
        f"repeat the earlier options to continue, or delete {path} to start again"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the facts of two runs, for a message."""
    return [
        f"{name} {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
    ]


def _short(value: object) -> str:
    """A value for a message; the first digits of a sha256 suffice to distinguish two files."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)

"""The rows of an unfinished batch, on disk, so that the same command can go on after an interruption.

A journal is a file of JSON lines. The first line says what makes the rows (`Facts`). Each further line is one image's
row, with the size and the time of change that its file had. Each line is handed to the operating system as soon as it
is known, so that a killed process loses none. A power cut loses at most the rows of the last `SYNC_SECONDS` of work.
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

#: Size (bytes) and time of change (ns) of an image file; None for what has neither, as standard input.
Stamp: TypeAlias = "tuple[int, int] | None"
#: Rows that are younger than this may be lost in a power cut. Waiting for the disk after each row would cost more time
#: than the network on a memory card.
SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class Facts:
    """What makes the rows of a batch. Runs share a journal only if theirs are equal.

    Attributes
    ----------
    bundle
        The manifest's name.
    model, model_sha256
        The model file and its content.
    cxr_edge
        The release of cxr-edge.
    """

    bundle: str
    model: str
    model_sha256: str
    engine: str
    precision: str
    operating_point: str
    threshold: float
    cxr_edge: str
    schema_version: int = 1

    @classmethod
    def of(cls, predictor: Predictor) -> Facts:
        """What a predictor makes rows with."""
        file, point = predictor.file, predictor.operating_point
        return cls(
            predictor.manifest.name, file.path, file.sha256, file.engine, file.precision, point.name, point.threshold,
            version("cxr-edge"),
        )  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """Where the row of an image begins in the journal, and whether it can be used again."""

    offset: int
    stamp: Stamp
    failed: bool


class Journal:
    """Rows on disk, found by image; held by one process at a time.

    Parameters
    ----------
    path
        Of the journal; made with its folder if it is not there. A last line that was cut short is cut off.
    facts
        What will make the rows that are appended.

    Raises
    ------
    UsageError
        If other facts made the rows that it has, if it is no journal, or if another process writes to it.
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
        """Whether there is a row of this image, not an error, and its file still has that stamp."""
        entry = self._entries.get(image)
        return entry is not None and not entry.failed and stamp is not None and entry.stamp == stamp

    def append(self, row: Mapping[str, Any], stamp: Stamp) -> None:
        """Add the row of an image, in place of an earlier one of it.

        Raises
        ------
        OutputError
            If the disk is full; the journal then ends after the row before.
        """
        entry = _Entry(self._end, stamp, "error" in row)
        with naming(self.path):
            self._write(json.dumps({"stamp": stamp, "row": row}).encode() + b"\n")
            if monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = monotonic()
        self._entries[row["path"]] = entry

    def rows(self, images: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of these images, in this order; each has one."""
        with self.path.open("rb") as reader:
            for image in images:
                reader.seek(self._entries[image].offset)
                yield json.loads(reader.readline())["row"]

    def delete(self) -> None:
        """Remove the journal; its rows are in the result."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        """Append a whole line or nothing."""
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
        """Index the rows that are there; -> bytes of whole lines."""
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
                f"{self.path}: {damaged} lines are not rows of images; those images are done again",
                CxrEdgeWarning,
                stacklevel=2,
            )
        return end

    def _index(self, line: bytes, offset: int) -> bool:
        """Note the row in a line; -> whether there is one."""
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
    """Size and time of change of an image file; None if it has none that can be read."""
    try:
        status = Path(image).stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return status.st_size, status.st_mtime_ns


def _open_locked(path: Path) -> FileIO:
    """Open a journal for appending, and keep other processes from it until it is closed."""
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
        stream.close()  # another process ended and removed the journal just before the lock was had: begin again


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
        return  # a file system that has no locks


def _header(facts: Facts) -> bytes:
    return json.dumps({"run": asdict(facts)}).encode() + b"\n"


def _check_header(path: Path, line: bytes, facts: Facts) -> None:
    """Refuse rows that something else made; a header that was cut short has no rows after it."""
    if _header(facts).startswith(line):
        return
    try:
        before = json.loads(line)["run"]
        now = asdict(facts)
        differences = [
            f"{name} {_short(before.get(name))}, now {_short(now.get(name))}"
            for name in dict.fromkeys((*now, *before))
            if before.get(name) != now.get(name)
        ]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: its first line does not say which model made its rows; expected the journal of an interrupted "
            f"`predict -o`, found {line[:40]!r}. Delete it to start anew, or choose another FILE with -o"
        ) from error
    raise UsageError(
        f"{path}: the run that was interrupted had {'; '.join(differences)}. One result holds rows of one model only: "
        f"repeat the earlier options to go on, or delete {path} to start anew"
    )


def _short(value: object) -> str:
    """A value as it stands in a message: the first figures of a sha256 tell two files apart."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)

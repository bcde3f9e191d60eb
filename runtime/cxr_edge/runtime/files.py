"""Writing files so that nothing half-written is ever found under its final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cxr_edge.runtime.errors import OutputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write under a temporary name in the same folder, then rename.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to, or the disk is full.
    """
    with open_atomically(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomically(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder for writing; it becomes `path` when the block ends without an error.

    Parameters
    ----------
    sync
        Whether the content reaches the disk before the name does, so that it outlives a power cut.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                yield stream
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `OutputError` that names the file and says what to do.

    The system's own error of a full disk names no file.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); free space there, or choose another place"
        ) from error

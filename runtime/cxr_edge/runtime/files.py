"""Atomic writing of files: an incomplete file never has its final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cxr_edge.runtime.errors import OutputError, UsageError


def check_writable(path: Path) -> None:
    """Check that `write_atomically(path, …)` will work, before a long computation of its content.

    Raises
    ------
    UsageError
        If the file cannot be written there.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from error


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
        Whether the content is on the disk before the file gets its name, so that it survives a power failure.

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

    The error of the operating system for a full disk names no file.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space, or choose another place"
        ) from error

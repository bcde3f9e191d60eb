"""Writing files so that nothing half-written is ever found under its final name."""

from __future__ import annotations

import os
from pathlib import Path

from cxr_edge.runtime.errors import UsageError


def check_writable(path: Path) -> None:
    """Make sure that `write_atomically(path, …)` will work, before long work whose result it is to write.

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
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write under a temporary name in the same folder, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

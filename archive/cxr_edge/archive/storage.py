"""The folder of a result, on a file system or in an object store, and its atomic writes.

::

    OUT/run.json                what produces the rows
    OUT/rows/*.parquet          the rows; nothing else is ever in this folder
    OUT/writing/                files that are being written, and who writes

A local file is written in `writing`, flushed to the disk and renamed. An object appears when its upload ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cxr_edge.runtime.errors import OutputError, UsageError
from cxr_edge.runtime.files import naming

ROWS_FOLDER, WRITING, RUN = "rows", "writing", "run.json"


@dataclass(frozen=True)
class Output:
    """The folder `-o`: a path, or a URL that fsspec understands, such as `s3://bucket/folder`."""

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """File system of fsspec, and path on it."""
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"-o {self.url}: cannot be opened ({error}); name a folder, or install what it needs"
            ) from error
        return filesystem, path.rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The file system of fsspec."""
        return self._place[0]

    @cached_property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, or one that is mounted here."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, *names: str) -> str:
        """Path of a file in the folder, without protocol."""
        return "/".join((self._place[1], *names))

    def parts(self) -> list[str]:
        """Names of the Parquet files with rows, sorted."""
        return sorted(Path(path).name for path in self._list(ROWS_FOLDER) if path.endswith(".parquet"))

    def _list(self, folder: str) -> list[str]:
        self.filesystem.invalidate_cache()  # other processes write to it
        try:
            return [str(path) for path in self.filesystem.ls(self.path(folder), detail=False)]
        except FileNotFoundError:
            return []

    def read(self, *names: str) -> bytes | None:
        """Content of a file; None if it does not exist."""
        try:
            return bytes(self.filesystem.cat_file(self.path(*names)))
        except FileNotFoundError:
            return None

    def write(self, content: bytes, *names: str, allowed: Callable[[], None] = lambda: None) -> None:
        """Write a file so that no reader sees a part of it.

        Parameters
        ----------
        allowed
            Called directly before the file gets its name; it raises if it must not.

        Raises
        ------
        OutputError
            If it cannot be written. The earlier file, if any, is unchanged.
        """
        if self.is_local:
            self._write_local(content, Path(self.path(*names)), allowed)
            return
        allowed()
        try:
            self.filesystem.pipe_file(self.path(*names), content)
        except Exception as error:  # each store has its own exceptions
            raise OutputError(
                f"{self.url}/{'/'.join(names)}: cannot be written ({type(error).__name__}: {error}); check credentials "
                "and network; finished rows are kept"
            ) from error

    def _write_local(self, content: bytes, target: Path, allowed: Callable[[], None]) -> None:
        partial = Path(self.path(WRITING, f"{target.name}.{socket.gethostname()}.{os.getpid()}"))
        with naming(target):
            partial.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                allowed()
                partial.replace(target)
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def remove(self, *names: str) -> None:
        """Delete a file of `writing`; one that stays does no harm."""
        with suppress(Exception):  # each store has its own exceptions
            self.filesystem.rm_file(self.path(*names))

    def remove_leftovers(self, names: set[str]) -> None:
        """Delete what killed processes left of these files in `writing`."""
        for name in (Path(path).name for path in self._list(WRITING)):
            if name.partition(".parquet")[0] + ".parquet" in names:
                self.remove(WRITING, name)

"""Suppression of messages that native libraries write to standard error."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import IO


@contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error inside the block, and show it if the block fails.

    TensorFlow, its converter and LiteRT write greetings to file descriptor 2, which neither `logging` nor `warnings`
    controls. The descriptor belongs to the process, so blocks in several threads share one redirection. It ends with
    the last block.
    """
    if not _redirection.begin():  # no standard error, as in a service: nothing to silence
        yield
        return
    try:
        yield
    except BaseException:
        _redirection.show()
        raise
    finally:
        _redirection.end()


class _Redirection:
    """File descriptor 2, redirected into a temporary file while at least one block needs it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks = 0
        self._saved = -1
        self._held: IO[bytes]

    def begin(self) -> bool:
        """Redirect standard error unless another block has done so; return False if the process has none."""
        with self._lock:
            if self._blocks == 0:
                try:
                    sys.stderr.flush()
                    self._saved = os.dup(2)
                except (AttributeError, OSError):
                    return False
                self._held = _temporary_file()
                os.dup2(self._held.fileno(), 2)
            self._blocks += 1
            return True

    def show(self) -> None:
        """Write what was held back so far to the real standard error."""
        with self._lock:
            sys.stderr.flush()
            # The descriptors share one file position, so later output is appended after what is read here.
            self._held.seek(0)
            os.write(self._saved, self._held.read())

    def end(self) -> None:
        """Restore standard error unless another block still needs the redirection."""
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                sys.stderr.flush()
                os.dup2(self._saved, 2)
                os.close(self._saved)
                self._held.close()


def _temporary_file() -> IO[bytes]:
    """A file without a name: in memory on Linux, where a service may have no folder that it can write to."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


_redirection = _Redirection()

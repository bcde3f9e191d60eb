"""Silence for native libraries that write to standard error past Python."""

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
    """Hold back what C and C++ code writes to standard error inside the block; show it if the block fails.

    TensorFlow, its converter and LiteRT greet on file descriptor 2, where neither `logging` nor `warnings` reaches.
    The descriptor belongs to the process: blocks of several threads share one redirection, which ends with the last.
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
    """File descriptor 2, led into a temporary file while one block or more want it so."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks = 0
        self._saved = -1
        self._held: IO[bytes]

    def begin(self) -> bool:
        """Lead standard error away, if no other block has done so; False if there is none."""
        with self._lock:
            if self._blocks == 0:
                try:
                    sys.stderr.flush()
                    self._saved = os.dup(2)
                except (AttributeError, OSError):
                    return False
                self._held = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open until `end`
                os.dup2(self._held.fileno(), 2)
            self._blocks += 1
            return True

    def show(self) -> None:
        """Write what was held back so far to the real standard error."""
        with self._lock:
            sys.stderr.flush()
            # The descriptors share one position, so what comes next goes behind what is read here.
            self._held.seek(0)
            os.write(self._saved, self._held.read())

    def end(self) -> None:
        """Lead standard error back, if no other block still wants it away."""
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                sys.stderr.flush()
                os.dup2(self._saved, 2)
                os.close(self._saved)
                self._held.close()


_redirection = _Redirection()

"""The progress line: share done, rate, errors, time left."""

from __future__ import annotations

import sys
from time import monotonic

#: Seconds between two lines in a log, which is not a terminal.
LOG_EVERY = 30.0


class Progress:
    """Counts rows of a run and prints a line on standard error: at each block on a terminal, else from time to time.

    Parameters
    ----------
    total, done
        Number of inputs, and how many of them have a row already.
    """

    def __init__(self, total: int, done: int) -> None:
        self.rows = self.errors = 0
        self._inputs, self._total, self._before = 0, total, done
        self._start = self._printed = monotonic()
        self._in_place = sys.stderr.isatty()

    def add(self, inputs: int, rows: int, errors: int) -> None:
        """Count a block that is done; a tar file is one input with many rows."""
        self._inputs, self.rows, self.errors = self._inputs + inputs, self.rows + rows, self.errors + errors
        if self._in_place or monotonic() - self._printed > LOG_EVERY:
            self._printed = monotonic()
            end = "" if self._in_place else "\n"
            sys.stderr.write(("\r\x1b[K" if self._in_place else "") + self.line() + end)
            sys.stderr.flush()

    def line(self) -> str:
        """The line."""
        seconds = max(monotonic() - self._start, 1e-3)
        have = self._before + self._inputs
        left = (self._total - have) * seconds / max(self._inputs, 1)
        return (
            f"{have:,} of {self._total:,} ({have / max(self._total, 1):.0%}), {self.rows / seconds:.1f} rows/s, "
            f"{self.errors:,} errors, {_duration(left)} left"
        )

    def close(self) -> None:
        """End the line."""
        if self._in_place:
            sys.stderr.write("\n")


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

"""Structured logs: one JSON object on each line of standard error; no file names, pixels or addresses of clients."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from typing import Any


def info(event: str, **fields: Any) -> None:
    """Log what happened."""
    _write("info", event, fields)


def warn(event: str, **fields: Any) -> None:
    """Log what somebody should look at."""
    _write("warning", event, fields)


def configure() -> None:
    """Write warnings of libraries to standard error in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("python_multipart").disabled = True  # its warnings quote what clients send


class _JsonFormatter(logging.Formatter):
    """Formats a record of a library; a defect has its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return _line(record.levelname.lower(), record.getMessage(), fields)


def _write(level: str, event: str, fields: dict[str, Any]) -> None:
    # Not by `logging`, which takes a tenth of the time that the service spends on a request.
    with suppress(OSError):  # a log that nobody can read must not fail a request
        print(_line(level, event, fields), file=sys.stderr, flush=True)


def _line(level: str, event: str, fields: dict[str, Any]) -> str:
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return json.dumps({"time": f"{seconds}.{int(now % 1 * 1000):03}Z", "level": level, "event": event, **fields})

"""Structured logs: one JSON object on each line of standard error; no file names, pixels or addresses of clients."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

_logger = logging.getLogger("cxr_edge.serve")


class JsonFormatter(logging.Formatter):
    """Formats a record as `{"time", "level", "event", ...}`; a defect has its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure() -> None:
    """Write the logs of the service, and warnings of its libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _logger.setLevel(logging.INFO)
    logging.getLogger("python_multipart").disabled = True  # its warnings quote what clients send


def info(event: str, **fields: Any) -> None:
    """Log what happened."""
    _logger.info(event, extra={"fields": fields})


def warn(event: str, **fields: Any) -> None:
    """Log what somebody should look at."""
    _logger.warning(event, extra={"fields": fields})

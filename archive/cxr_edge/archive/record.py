"""What produces the rows of a result (`run.json`), and which process may write them.

Two runs share a result only if model, engine, precision, operating point and version are equal. For each shard one
driver may write. A new driver replaces the token of the one before it. Workers compare the token directly before each
file gets its name, so a worker that outlives a killed driver writes nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_edge.archive.schema import SCHEMA_VERSION
from cxr_edge.archive.storage import RUN, WRITING, Output
from cxr_edge.runtime.cli.journal import Facts, differences
from cxr_edge.runtime.errors import OutputError, UsageError


@dataclass(frozen=True)
class Writer:
    """The right of one driver to write to one shard of a result."""

    output: Output
    file: str
    token: str

    def check(self) -> None:
        """Raise OutputError if another driver has taken over since."""
        found = self.output.read(WRITING, self.file)
        if found is None or _parsed(found).get("token") != self.token:
            raise OutputError(
                f"{self.output.url}: another `cxr-edge score` writes to it now; this one stops. Run one at a time for "
                "each shard"
            )

    def release(self) -> None:
        """Delete the token at the end of a run."""
        self.output.remove(WRITING, self.file)


def check_run(output: Output, facts: Facts) -> bool:
    """Whether the result exists; raises UsageError if something else produced its rows."""
    content = output.read(RUN)
    if content is None:
        if output.parts():
            raise UsageError(
                f"{output.url}: found rows but no {RUN}, expected the result of `cxr-edge score`; name another OUT"
            )
        return False
    record = _parsed(content)
    before = record.get("facts")
    if not isinstance(before, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{output.url}/{RUN}: found schema version {record.get('schema_version')}, expected {SCHEMA_VERSION}; "
            "name another OUT with -o"
        )
    if found := differences(before, asdict(facts)):
        raise UsageError(
            f"{output.url}: the rows in it had {'; '.join(found)}. A result contains rows of one model only: "
            "repeat the earlier options to continue, or name another OUT with -o"
        )
    return True


def begin(output: Output, facts: Facts, shard: tuple[int, int]) -> Writer:
    """Take the right to write; create `run.json` if there is none.

    Raises
    ------
    UsageError
        If something else produced the rows, or if another process of this machine writes this shard.
    OutputError
        If the folder cannot be written.
    """
    if not check_run(output, facts):
        record = {"schema_version": SCHEMA_VERSION, "facts": asdict(facts), "started": _now()}
        output.write(f"{json.dumps(record, indent=2)}\n".encode(), RUN)
        check_run(output, facts)  # another shard may have begun at the same time with another model
    file = f"writer-{shard[0]}-of-{shard[1]}.json"
    _refuse_if_alive(output, file)
    writer = Writer(output, file, uuid.uuid4().hex)
    owner = {"token": writer.token, "host": socket.gethostname(), "process": os.getpid(), "since": _now()}
    output.write(json.dumps(owner).encode(), WRITING, file)
    return writer


def facts_json(facts: Facts) -> str:
    """The facts as they stand in the metadata of each Parquet file."""
    return json.dumps(asdict(facts))


def _refuse_if_alive(output: Output, file: str) -> None:
    """Refuse to take over from a driver that still runs on this machine; other machines cannot be asked."""
    owner = _parsed(output.read(WRITING, file) or b"{}")
    process = owner.get("process")
    if owner.get("host") != socket.gethostname() or not isinstance(process, int) or process == os.getpid():
        return
    with suppress(OSError):
        if b"score" in Path(f"/proc/{process}/cmdline").read_bytes():
            raise UsageError(
                f"{output.url}: process {process} is writing to it; wait until it ends, or name another OUT with -o"
            )


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

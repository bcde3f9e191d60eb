"""What `cxr-edge serve` is told: the model, the limits, the address and who may use it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import UsageError

#: Environment variable that holds the token.
TOKEN_VARIABLE = "CXR_EDGE_TOKEN"
#: Shorter tokens can be guessed (characters).
SHORTEST_TOKEN = 16
LARGEST_TOKEN_FILE = 4096


@dataclass(frozen=True)
class ModelChoice:
    """The model that every worker loads; the arguments of `cxr_edge.runtime.load`."""

    bundle: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    operating_point: str | None = None
    trusted: str | None = None
    max_pixels: int = MAX_PIXELS

    def to_dict(self) -> dict[str, Any]:
        """Arguments of `load`; paths are absolute."""
        return asdict(self) | {
            name: value and str(Path(value).resolve())
            for name, value in (("bundle", self.bundle), ("trusted", self.trusted))
        }


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes
    ----------
    workers
        Processes that predict, each with one thread.
    queue
        Images that may wait for a worker; further requests get 503.
    max_body
        Bytes of one request.
    max_files
        Images of one request.
    timeout
        Seconds for a body to arrive, and for the answer to a request after that.
    """

    workers: int
    queue: int = 32
    max_body: int = 64 * 2**20
    max_files: int = 16
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.max_files > self.queue:
            raise UsageError(
                f"--max-files {self.max_files}, --queue {self.queue}: found a request that can never be queued, "
                "expected a queue of at least as many images; raise --queue or lower --max-files"
            )

    @property
    def max_held(self) -> int:
        """Bytes of all requests together; further requests get 503."""
        return 4 * self.max_body


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_token(path: Path | None) -> str | None:
    """The token of a file, else of the environment; None if there is none.

    Raises
    ------
    UsageError
        If the file cannot be read, or the token is short or not printable ASCII.
    """
    source = str(path) if path else TOKEN_VARIABLE
    token = _content(path) if path else os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError(
            f"{source}: found a token of {len(token)} characters, expected at least {SHORTEST_TOKEN} of printable "
            "ASCII without spaces; make one with: openssl rand -hex 32"
        )
    return token


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_TOKEN_FILE).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"{path}: the token cannot be read ({error.strerror}); check path and permissions") from error


def check_exposure(host: str, token: str | None, insecure: bool) -> None:
    """Refuse an address that others can reach, unless there is a token or `insecure` is set; raises UsageError."""
    if not (is_loopback(host) or token or insecure):
        raise UsageError(
            f"--host {host}: other machines can reach this address, and there is no token; name a file with "
            f"--token-file, set {TOKEN_VARIABLE}, or say --insecure if a proxy asks for the identity"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

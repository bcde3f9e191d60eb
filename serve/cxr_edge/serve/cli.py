"""Command `serve`.

`--help` imports this module, so the functions import the service only when it runs.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import click

from cxr_edge.runtime.cli.decide import model_options
from cxr_edge.runtime.errors import UsageError
from cxr_edge.serve.settings import (
    TOKEN_VARIABLE,
    Limits,
    ModelChoice,
    check_exposure,
    default_workers,
    is_loopback,
    read_token,
)

MEGABYTE = 2**20
#: Connections that may wait until the service accepts them.
BACKLOG = 1024


@click.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"File with the token that every request must present.  [default: the variable {TOKEN_VARIABLE}]",
)
@click.option("--insecure", is_flag=True, help="Listen on an address that others can reach without asking for a token.")
@click.option("--workers", type=click.IntRange(1), help="Processes that predict.  [default: number of cores]")
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=Limits.queue,
    show_default=True,
    help="Images that may wait; more get 503.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=Limits.max_body // MEGABYTE,
    show_default=True,
    metavar="MB",
    help="Size of one request in MB (2^20 bytes).",
)
@click.option(
    "--max-files", type=click.IntRange(1), default=Limits.max_files, show_default=True, help="Images of one request."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=Limits.timeout,
    show_default=True,
    metavar="SECONDS",
    help="Time for a body to arrive, and for the answer after that.",
)
def serve(
    host: str, port: int, token_file: Path | None, insecure: bool, workers: int | None, queue: int, max_body: int,
    max_files: int, timeout: float, **model: Any,
) -> None:  # fmt: skip
    """Serve the page and an HTTP API: predictions, the inference protocol of KServe and Triton, and metrics.

    It answers on this machine only, unless --host names another address; that needs a token, or --insecure.
    SIGTERM and Ctrl-C finish what was accepted. Logs are JSON lines on standard error.

    \b
      cxr-edge serve -m bundle
      curl -F file=@xray.jpeg http://127.0.0.1:8000/v1/predict
    """
    limits = Limits(workers or default_workers(), queue, max_body * MEGABYTE, max_files, timeout)
    token = read_token(token_file)
    check_exposure(host, token, insecure)
    listener = bind(host, port)
    from cxr_edge.serve.pool import Pool

    pool = Pool(ModelChoice(**model), limits)
    pool.launch()  # the workers load the model while this process imports the server
    from cxr_edge.serve.server import run

    name = "127.0.0.1" if is_loopback(host) and ":" not in host else f"[{host}]" if ":" in host else host
    click.echo(f"http://{name}:{listener.getsockname()[1]}/")
    run(listener, pool, limits, token)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address, so that clients may connect at once; raises UsageError if it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UsageError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --host or --port"
        ) from error
    return listener

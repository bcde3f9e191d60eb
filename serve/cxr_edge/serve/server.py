"""The server: its socket, its time limits for connections, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cxr_edge.serve import logs
from cxr_edge.serve.app import Service, make_application, running
from cxr_edge.serve.envelope import Envelope
from cxr_edge.serve.pool import Pool, raise_failure
from cxr_edge.serve.settings import Limits

#: Seconds in which the head of a request must arrive.
HEAD_SECONDS = 10.0
#: Seconds after which a connection is closed whose client takes no more bytes of its answer.
UNREAD_SECONDS = 30.0
#: Seconds that an idle connection is kept open for the next request.
IDLE_SECONDS = 30


def run(listener: socket.socket, pool: Pool, limits: Limits, token: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted.

    Parameters
    ----------
    listener
        The bound socket.
    pool
        The workers, which have been launched.

    Raises
    ------
    EngineError
        If the model cannot be loaded.
    """
    logs.configure()

    def stop() -> None:
        server.should_exit = True

    service = Service(pool, limits)
    app = make_application(service, token, lambda _: running(pool, _tell_ready, stop))
    server = Server(configuration(app, limits))
    host, port = listener.getsockname()[:2]
    logs.info("listening", address=host, port=port, token=token is not None, workers=limits.workers)
    gc.freeze()  # what was imported never becomes garbage, so that collections need not look at it
    server.run(sockets=[listener])
    raise_failure(pool)


def configuration(app: Envelope, limits: Limits) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=round(2 * limits.timeout + 5),
    )


class Server(uvicorn.Server):
    """A server that drains on SIGTERM and Ctrl-C and then ends normally; uvicorn's own ends by the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the first signal, and at once on the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield
        logs.info("stopped")

    def _stop(self) -> None:
        logs.info("draining")
        notify("STOPPING=1")
        self.force_exit, self.should_exit = self.should_exit, True


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose clients are too slow.

    uvicorn limits neither the time of a request's head nor that of an answer which the client does not read.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * UNREAD_SECONDS))
        self._head = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Stop to wait when the head of a request is complete; wait again when the next begins."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head.cancel()
        elif self._head.cancelled():
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._head.cancel()
        super().connection_lost(exc)


def _tell_ready() -> None:
    logs.info("ready")
    notify("READY=1")


def notify(state: str) -> None:
    """Tell systemd the state of the service, if systemd started it (`sd_notify(3)`)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)

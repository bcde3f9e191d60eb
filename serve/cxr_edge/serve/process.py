"""The processes of the workers, and the link of the service to each."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cxr_edge.serve.channel import Decoder, Header, Message, frame, send
from cxr_edge.serve.errors import RequestError
from cxr_edge.serve.settings import TOKEN_VARIABLE

#: Runs a worker. The current folder is taken off the path, because files in it must not replace modules.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from cxr_edge.serve.worker import main; main()"


class Process:
    """A running worker."""

    def __init__(self, choice: Mapping[str, Any]) -> None:
        """Start the process; it loads the model (arguments of `load`) without being waited for."""
        self.connection, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        send(self.connection, choice)
        self.connection.setblocking(False)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._popen.pid

    def end(self) -> int:
        """Kill the process if it still runs; return its exit code."""
        self._popen.kill()
        return self._popen.wait()


@dataclass(eq=False)
class Job:
    """One image, or one infer request, and its answer."""

    header: Header
    body: bytes
    started: bool = False
    answer: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: RequestError) -> None:
        """Answer with an error, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # else asyncio warns that nobody looked at it


class Link(asyncio.Protocol):
    """Gives a worker one job at a time.

    Attributes
    ----------
    greeting
        What the worker says first: it is ready, or why it is not.
    lost
        Done when the process has ended.
    """

    def __init__(self, on_idle: Callable[[Link, Message], None]) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[Message] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._on_idle, self._decoder = on_idle, Decoder()
        self._job: Job | None = None
        self._timer: asyncio.TimerHandle
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, process: Process, on_idle: Callable[[Link, Message], None]) -> Link:
        """Link to a process that has just started; `on_idle` is called with each answer to a job."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(on_idle), sock=process.connection)
        return link

    def start(self, job: Job, seconds: float) -> None:
        """Send a job; after `seconds` without an answer the link is closed, and its worker has to be ended."""
        self._job, job.started = job, True
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up, seconds)
        self._transport.writelines((frame(job.header, job.body), job.body))

    def close(self) -> None:
        """Close the connection; the worker then ends by itself."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect the pieces of an answer, and pass it on."""
        if not (message := self._decoder.feed(data)):
            return
        if self._job is None:
            self.greeting.set_result(message)
            return
        job, self._job = self._job, None
        self._timer.cancel()
        if not job.answer.done():
            job.answer.set_result(message)
        self._on_idle(self, message)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the process has ended."""
        if self._job:
            self._timer.cancel()
            self._job.fail(RequestError(503, "the worker ended while it read this image; try again", 1))
        if not self.lost.done():
            self.lost.set_result(None)

    def _give_up(self, seconds: float) -> None:
        if self._job:
            self._job.fail(RequestError(504, f"the image took more than {seconds:g} s"))
        self.close()

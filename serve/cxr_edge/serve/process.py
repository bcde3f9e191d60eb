"""The processes of the workers, and the link of the service to each."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cxr_edge.serve.channel import Decoder, Header, Message, frame, send
from cxr_edge.serve.settings import TOKEN_VARIABLE

#: Runs a worker. The current folder is taken off the path, because files in it must not replace modules.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from cxr_edge.serve.worker import main; main()"


class WorkerLostError(Exception):
    """The process of a worker has ended."""


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


class Link(asyncio.Protocol):
    """Asks a worker one job at a time.

    Attributes
    ----------
    lost
        Done when the process has ended.
    """

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder = Decoder()
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, process: Process) -> Link:
        """Link to a process that has just started."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(cls, sock=process.connection)
        return link

    async def greeting(self) -> Message:
        """Wait until the worker is ready, or says why it is not; raises WorkerLostError."""
        return await self._next_answer()

    async def ask(self, header: Header, body: bytes) -> Message:
        """Do a job; raises WorkerLostError if the process ends before it has answered."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines((frame(header, body), body))
        return await self._next_answer()

    async def _next_answer(self) -> Message:
        await asyncio.wait((self._answer, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not self._answer.done():
            raise WorkerLostError
        return self._answer.result()

    def close(self) -> None:
        """Close the connection; the worker then ends by itself."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect the pieces of an answer."""
        if (message := self._decoder.feed(data)) and not self._answer.done():
            self._answer.set_result(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the process has ended."""
        if not self.lost.done():
            self.lost.set_result(None)

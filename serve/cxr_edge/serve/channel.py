"""Messages between the service and its workers: a JSON header and a body of bytes, over a socket.

The header is JSON, not pickle: a worker decodes images that are not trusted, so the service must not trust the worker.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

Header: TypeAlias = Mapping[str, Any]
Message: TypeAlias = "tuple[dict[str, Any], bytes]"
#: Lengths of header and body.
_LENGTHS = struct.Struct(">IQ")


def frame(header: Header, body: bytes = b"") -> bytes:
    """The bytes before the body of a message."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(body)) + text


def send(connection: socket.socket, header: Header, body: bytes = b"") -> None:
    """Send a message; wait until it is sent. Raises OSError if the other side is gone."""
    connection.sendall(frame(header, body))
    connection.sendall(body)


def receive(connection: socket.socket) -> Message | None:
    """Wait for a message; None if the other side is gone."""
    lengths = _read(connection, _LENGTHS.size)
    if lengths is None:
        return None
    header_length, body_length = _LENGTHS.unpack(lengths)
    header, body = _read(connection, header_length), _read(connection, body_length)
    return None if header is None or body is None else (json.loads(header), body)


def _read(connection: socket.socket, length: int) -> bytes | None:
    buffer = bytearray(length)
    view, done = memoryview(buffer), 0
    while done < length:
        count = connection.recv_into(view[done:])
        if count == 0:
            return None
        done += count
    return bytes(buffer)


class Decoder:
    """Messages out of the pieces in which they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Message | None:
        """Add a piece; return the message that it completes.

        At most one message is under way, because a worker answers one job at a time.
        """
        self._buffer += data
        if len(self._buffer) < _LENGTHS.size:
            return None
        header_length, body_length = _LENGTHS.unpack_from(self._buffer)
        start, end = _LENGTHS.size + header_length, _LENGTHS.size + header_length + body_length
        if len(self._buffer) < end:
            return None
        header, body = json.loads(self._buffer[_LENGTHS.size : start]), bytes(self._buffer[start:end])
        del self._buffer[:end]
        return header, body

"""Connections whose clients are too slow are closed."""

import asyncio

import pytest
import uvicorn

from cxr_edge.serve import server


async def echo(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
def converse(monkeypatch):
    """Send pieces with pauses of 0.1 s ; the server waits 0.25 s for a head -> its answer, and if it closed."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.25)
    config = uvicorn.Config(echo, http=server.PatientProtocol, lifespan="off", log_config=None, timeout_keep_alive=60)
    config.load()

    async def run(pieces: list[bytes]) -> tuple[bytes, bool]:
        state = uvicorn.server.ServerState()
        listener = await asyncio.get_running_loop().create_server(
            lambda: server.PatientProtocol(config, state, {}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        answer, closed = b"", False
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.1)
        try:
            while data := await asyncio.wait_for(reader.read(1000), 1):
                answer += data
            closed = True
        except asyncio.TimeoutError:
            pass
        except ConnectionError:
            closed = True
        writer.close()
        listener.close()
        return answer, closed

    return lambda *pieces: asyncio.run(run(list(pieces)))


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


def test_a_head_that_never_ends_is_given_up(converse):
    assert converse() == (b"", True)
    assert converse(*[b"G", b"E", b"T", b" ", b"/"]) == (b"", True)


def test_a_second_head_that_never_ends_is_given_up(converse):
    answer, closed = converse(HEAD + b"\r\n", HEAD, b"A: b", b"\r\n")
    assert answer.startswith(b"HTTP/1.1 204") and closed


def test_an_idle_connection_stays_open(converse):
    answer, closed = converse(HEAD, b"\r\n", b"", b"", b"")
    assert answer.startswith(b"HTTP/1.1 204") and not closed

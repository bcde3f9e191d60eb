"""Bodies that arrive in pieces of any size."""

import asyncio
import time

import pytest
from service import form

from cxr_edge.serve.body import Held, read_uploads
from cxr_edge.serve.errors import ClientGoneError, RequestError
from cxr_edge.serve.settings import Limits

LIMITS = Limits(workers=1, max_body=100_000, max_files=3)


def read(kind: str, pieces: list[bytes], held: Held | None = None, gone: bool = False):
    """Read the images of a body that arrives in these pieces."""
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return events.pop(0)

    async def run():
        with (held or Held(10**9)).share() as share:
            return await read_uploads(receive, {"content-type": kind}, LIMITS, share)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_forms_are_read_in_pieces(size):
    images = [("a.png", b"\r\n--" * 50), ("ü.dcm", bytes(range(256)) * 4), ("", b"")]
    kind, body = form(*images)
    uploads = read(kind, [body[at : at + size] for at in range(0, len(body), size)])
    assert [(upload.name, upload.content) for upload in uploads] == [*images[:2], ("image", b"")]


def test_all_requests_together_are_limited():
    held = Held(1000)
    with held.share() as other:
        other.add(900)
        with pytest.raises(RequestError) as error:
            read("image/png", [b"x" * 101], held)
        assert error.value.status == 503 and held.total == 900
        assert read("image/png", [b"x" * 100], held)
    assert held.total == 0


def test_a_client_that_goes_is_noticed():
    held = Held(1000)
    with pytest.raises(ClientGoneError):
        read("image/png", [b"x"], held, gone=True)
    assert held.total == 0


@pytest.mark.parametrize("filler", [b"\r", b"\r\n", b"\r\n--", b"-", b"\0"])
def test_hostile_bodies_are_parsed_quickly(filler):
    kind, body = form(("x", filler * (90_000 // len(filler))))
    start = time.process_time()
    assert len(read(kind, [body])[0].content) > 80_000
    assert time.process_time() - start < 0.5

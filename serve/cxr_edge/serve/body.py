"""Reading of request bodies into memory, with every limit counted while the bytes arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from anyio import fail_after
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cxr_edge.serve.errors import ClientGoneError, RequestError
from cxr_edge.serve.settings import Limits

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
#: Name of the form field of an image.
FIELD = "file"
#: Name of an image whose client gave none, and the longest name that is kept (characters).
UNNAMED, LONGEST_NAME = "image", 255


@dataclass(frozen=True)
class Upload:
    """One image of a request; `name` is what the client calls it."""

    name: str
    content: bytes


class Held:
    """Bytes of request bodies that are in memory, of all requests together."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 0

    def share(self) -> Share:
        """The share of one request, which leaves memory when its `with` block ends."""
        return Share(self)


class Share:
    """The bytes of one request."""

    def __init__(self, held: Held) -> None:
        self._held, self.size = held, 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.total -= self.size

    def add(self, count: int) -> None:
        """Count bytes that arrived; raises RequestError if all requests together hold too many."""
        if self._held.total + count > self._held.most:
            raise RequestError(503, "the requests that are read now fill the memory; try again", 1)
        self._held.total += count
        self.size += count


async def read_body(receive: Receive, headers: Mapping[str, str], limits: Limits, share: Share) -> bytes:
    """Read a body as it is.

    Raises
    ------
    RequestError
        408 if it does not arrive in time, 413 if it is too large, 415 if it is encoded, 503 if the memory is full.
    ClientGoneError
        If the client closes the connection before the end.
    """
    body = bytearray()

    async def collect() -> None:
        async for chunk in _chunks(receive, headers, limits, share):
            body.extend(chunk)

    await _in_time(collect(), limits)
    return bytes(body)


async def read_uploads(receive: Receive, headers: Mapping[str, str], limits: Limits, share: Share) -> list[Upload]:
    """Read the images of a body: the fields `file` of multipart/form-data, or the body itself.

    Raises
    ------
    RequestError, ClientGoneError
        As `read_body`; 400 if the multipart is malformed, has another field, or no image.
    """
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        body = await read_body(receive, headers, limits, share)
        if not body:
            raise RequestError(400, f"the body is empty; send one image, or multipart/form-data with fields '{FIELD}'")
        return [Upload(UNNAMED, body)]
    if not (boundary := options.get(b"boundary")):
        raise RequestError(400, "Content-Type: found multipart/form-data without boundary; let the client write it")
    form = _Form(limits.max_files)

    async def collect() -> None:
        parser = form.parser(boundary)
        async for chunk in _chunks(receive, headers, limits, share):
            parser.write(chunk)

    try:
        await _in_time(collect(), limits)
    except FormParserError as error:
        raise RequestError(400, f"the multipart body is malformed ({error})") from error
    return form.result()


async def _in_time(reading: Awaitable[None], limits: Limits) -> None:
    try:
        with fail_after(limits.timeout):
            await reading
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {limits.timeout:g} s; try again") from error


async def _chunks(receive: Receive, headers: Mapping[str, str], limits: Limits, share: Share) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive; a length that is announced too large is refused before the first."""
    if (encoding := headers.get("content-encoding", "identity")) != "identity":
        raise RequestError(415, f"Content-Encoding: found {encoding[:50]!r}, expected none; send the file as it is")
    announced = headers.get("content-length", "0")
    _check_size(int(announced) if announced.isdecimal() else 0, limits)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client closed the connection")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        _check_size(share.size + len(chunk), limits)
        share.add(len(chunk))
        if chunk:
            yield chunk


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_body:
        raise RequestError(413, f"the body has more than {limits.max_body:,} bytes; send fewer or smaller images")


@dataclass
class _Form:
    """The images of a multipart body, filled while it is parsed."""

    max_files: int
    uploads: list[Upload] = field(default_factory=list)
    complete: bool = False
    _headers: dict[str, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _content: bytearray = field(default_factory=bytearray)

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that fills this form."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_part,
                "on_part_data": self._add_content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def result(self) -> list[Upload]:
        """The images; raises RequestError if there is none, or the body ends too early."""
        if not self.complete:
            raise RequestError(400, "the multipart body ends before its last boundary; send it again")
        if not self.uploads:
            raise RequestError(400, f"the multipart body has no field; send each image in a field '{FIELD}'")
        return self.uploads

    def _begin(self) -> None:
        if len(self.uploads) == self.max_files:
            raise RequestError(413, f"the request has more than {self.max_files} images; send several requests")
        self._headers, self._content = {}, bytearray()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _check_part(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        if (name := options.get(b"name", b"")) != FIELD.encode():
            raise RequestError(
                400, f"found a field {_text(name)[:50]!r}, expected '{FIELD}' only; options belong into the query"
            )
        self._file_name = _text(options.get(b"filename", b""))[:LONGEST_NAME] or UNNAMED

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]

    def _end_part(self) -> None:
        self.uploads.append(Upload(self._file_name, bytes(self._content)))
        self._content = bytearray()

    def _end(self) -> None:
        self.complete = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

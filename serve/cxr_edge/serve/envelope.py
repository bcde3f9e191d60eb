"""What every request passes: access, headers of security, the log, and a polite end for bodies that nobody reads."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response

from cxr_edge.serve import logs
from cxr_edge.serve.errors import TYPES, RequestError

if TYPE_CHECKING:
    from cxr_edge.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: The one route that needs no token.
LIVE = "/v2/health/live"
#: Tells a client how to authenticate; a browser asks its user for the token.
CHALLENGE = 'Basic realm="cxr-edge", charset="UTF-8"'
WRONG = (
    "the token is missing or wrong; send the header 'Authorization: Bearer TOKEN', or the token as the password of "
    "Basic authentication"
)
#: Sent with every answer.
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
#: After an early answer, the rest of the body is read and dropped for this long and this far: a connection that is
#: closed with unread bytes is reset, and the client may then never see the answer.
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 2**20


class Access:
    """Asks for a token, if there is one, and refuses requests that a browser sends for another site."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token)

    def check(self, path: str, method: str, headers: Mapping[str, str]) -> None:
        """Refuse a request.

        Raises
        ------
        RequestError
            401 if the token is missing or wrong, 403 if a browser sends a form of another site.
        """
        if path == LIVE:
            return
        if self._digest is not None and not hmac.compare_digest(self._digest, _digest(_presented(headers))):
            raise RequestError(401, WRONG)
        if method == "POST" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RequestError(403, "a browser sent this request for a page of another site; use the page of this one")


def _presented(headers: Mapping[str, str]) -> str:
    """The token that a client sends; empty if it sends none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(token: str) -> bytes:
    """Digests have the same length, so that comparing them tells nothing about the length of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Envelope:
    """The outermost layer of the application."""

    def __init__(self, app: App, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle a request; other events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, headers = perf_counter(), Headers(scope=scope)
        exchange = Exchange(headers, receive, send)
        try:
            self._access.check(scope["path"], scope["method"], headers)
            await self._app(scope, exchange.receive, exchange.send)
        except RequestError as error:
            await refusal(scope["path"], error)(scope, exchange.receive, exchange.send)
        finally:
            self._note(scope, exchange, perf_counter() - start)

    def _note(self, scope: MutableMapping[str, Any], exchange: Exchange, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "page")
        self._metrics.requests.labels(route, exchange.status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        logs.info(
            "request",
            method=scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other",
            route=route,
            status=exchange.status,
            milliseconds=round(1e3 * seconds, 1),
            bytes=exchange.received,
        )


class Exchange:
    """One request and its answer.

    Attributes
    ----------
    status
        Status of the answer; 499 if the client was gone before there was one.
    received
        Bytes of the body that have arrived.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self.status, self.received = 499, 0
        self._receive, self._send = receive, send
        self._complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """The next event of the client; counts the body."""
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self._complete = self._complete or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(SECURITY_HEADERS)
            headers.setdefault("cache-control", "no-cache" if "etag" in headers else "no-store")
            if not self._complete:
                headers["connection"] = "close"
        elif not self._complete and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        async def drop() -> None:
            while not self._complete and self.received < limit:
                await self.receive()

        limit = self.received + LINGER_BYTES
        try:
            await asyncio.wait_for(drop(), LINGER_SECONDS)
        except asyncio.TimeoutError:
            return


def refusal(path: str, error: RequestError) -> Response:
    """The answer for an error: an object with type and message, or a text for the inference protocol."""
    content: Any = {"type": TYPES.get(error.status, "Error"), "message": str(error)}
    response = JSONResponse({"error": str(error) if path.startswith("/v2") else content}, error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        response.headers["www-authenticate"] = CHALLENGE
    return response

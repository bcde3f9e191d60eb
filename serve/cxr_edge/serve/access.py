"""Who may use the service."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode
from collections.abc import Mapping

from cxr_edge.serve.errors import RequestError

#: The one route that needs no token.
LIVE = "/v2/health/live"
#: Tells a client how to authenticate; a browser asks its user for the token.
CHALLENGE = 'Basic realm="cxr-edge", charset="UTF-8"'
WRONG = (
    "the token is missing or wrong; send the header 'Authorization: Bearer TOKEN', or the token as the password of "
    "Basic authentication"
)


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

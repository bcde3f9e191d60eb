"""Answers other than 200, as exceptions."""

from __future__ import annotations

from cxr_edge.runtime.errors import CxrEdgeError

#: Status -> the type that the body of the answer names.
TYPES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "BodyTimeout",
    413: "TooLarge",
    415: "UnsupportedEncoding",
    500: "Defect",
    503: "Busy",
    504: "PredictionTimeout",
}


class RequestError(CxrEdgeError):
    """A request that is not answered with 200.

    Attributes
    ----------
    status
        Status of the answer, one of `TYPES`.
    retry_after
        Seconds after which the client may try again; None if that would not help.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class ClientGoneError(CxrEdgeError):
    """The client closed the connection before it got its answer."""

"""Requests that are refused, each with the HTTP status and the `reason` label it is counted under.

Raised anywhere on the path of a request and turned into a response in one place (`http.py`). The message is for the
caller: what was found, what was expected. It never holds a stack trace or another request's content.
"""

from __future__ import annotations

from http import HTTPStatus


class Refused(Exception):
    """Base of all refusals; `retry_after_s` is set where trying again soon makes sense."""

    status = HTTPStatus.BAD_REQUEST
    reason = "refused"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Malformed(Refused):
    """The body is not what the endpoint takes; the message names the field."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    reason = "malformed"


class TooLarge(Refused):
    """Larger than this server would ever accept; a retry cannot help."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    reason = "too_large"


class TooSlow(Refused):
    """The body did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    reason = "too_slow"


class WrongBundle(Refused):
    """The caller's vectors or expectations belong to another embedding space."""

    status = HTTPStatus.PRECONDITION_FAILED
    reason = "wrong_bundle"


class NotServed(Refused):
    """A model, member or index this server does not have."""

    status = HTTPStatus.NOT_FOUND
    reason = "not_served"


class Overloaded(Refused):
    """The queue is full now; nothing of the request was done."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    reason = "overloaded"


class Unavailable(Refused):
    """The server is stopping or not ready."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "unavailable"


class NotInTime(Unavailable):
    """No answer within the deadline; what was not begun by then is not done."""

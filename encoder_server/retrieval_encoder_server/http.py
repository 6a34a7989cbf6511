"""What holds for every response, whatever endpoint it is of: one ASGI layer around the application, and error bodies.

- `X-Bundle-Id` and `X-Generation-Id`; `Connection: close` where the connection has to end;
- 412 when `X-Expected-Bundle-Id` names another bundle;
- the body is read here, bounded in size and time, by itself and with those of others, before anything parses it;
- one error shape, that of OpenAI: `{"error": {"message", "type"}}`, never with a stack trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval_core.log import get_logger
from retrieval_encoder_server.batcher import Clock
from retrieval_encoder_server.connections import SCOPE_EXTENSION
from retrieval_encoder_server.engine import Ids
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.model import KSERVE_ERRORS, as_refusal
from retrieval_encoder_server.refusals import Overloaded, Refused, TooLarge, TooSlow, WrongBundle

EXPECTED_BUNDLE_HEADER = b"x-expected-bundle-id"
# A client on the slowest sensible link sends 2 MiB within this. A gut feeling.
BODY_TIMEOUT_S = 30.0
# Of a body that is too large, so much is read and thrown away before the refusal: closing a connection with unread
# bytes resets it, and the client would see the reset instead of the 413.
DISCARDED_BYTES = 8 * 2**20

log = get_logger(__name__)


def json_response(content: Any, status: int = HTTPStatus.OK) -> Response:
    """orjson, which writes numpy arrays directly: 2000 ids and scores take 0.07 ms instead of 10 ms."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def refusal_response(error: Refused) -> Response:
    response = json_response({"error": {"message": str(error), "type": error.reason}}, error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


# Whether there is room for so many bytes more, which then count.
Take = Callable[[int], bool]


class Bodies:
    """What the bodies of all requests that are not answered yet take, bounded: however many clients there are."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @contextmanager
    def room(self) -> Iterator[Take]:
        """For one request: what it takes is given back when it ends."""
        held = 0

        def take(size: int) -> bool:
            nonlocal held
            if self._held_bytes + size > self._max_bytes:
                return False
            self._held_bytes += size
            held += size
            return True

        try:
            yield take
        finally:
            self._held_bytes -= held


class Envelope:
    """The outermost layer: nothing is sent that has not passed through here."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        ids: Ids,
        max_body_bytes: int,
        max_bodies_bytes: int,
        metrics: Metrics,
        clock: Clock = time.monotonic,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app = app
        self._ids = ids
        self._id_headers = [
            (b"x-bundle-id", ids.bundle_id.encode()),
            (b"x-generation-id", (ids.generation_id or "").encode()),
        ]
        self._max_body_bytes = max_body_bytes
        self._bodies = Bodies(max_bodies_bytes)
        self._metrics = metrics
        self._clock = clock
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = self._clock()
        is_started = False

        async def send_in_envelope(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message = {**message, "headers": [*message.get("headers", []), *self._headers(scope)]}
                self._record(scope, message["status"], self._clock() - started_at)
            await send(message)

        with self._bodies.room() as take:
            try:
                self._require_expected_bundle(scope)
                body = await self._read_body(receive, _content_length(scope), take)
            except Refused as error:
                self._metrics.refused.labels(error.reason).inc()
                await refusal_response(error)(scope, receive, send_in_envelope)
                return
            if body is None:
                return
            try:
                await self._app(scope, _replay(body, receive), send_in_envelope)
            except Exception:
                # Starlette answers 500 (`fail` below) and raises again; uvicorn would drop the connection unannounced.
                if not is_started:
                    raise

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        must_end = scope.get("extensions", {}).get(SCOPE_EXTENSION)
        return [*self._id_headers, *([(b"connection", b"close")] if must_end is not None and must_end() else [])]

    def _require_expected_bundle(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == EXPECTED_BUNDLE_HEADER and value != self._ids.bundle_id.encode():
                found = value.decode("latin-1")
                raise WrongBundle(f"X-Expected-Bundle-Id is {found:.80}, this server has bundle {self._ids.bundle_id}")

    async def _read_body(self, receive: Receive, announced: int, take: Take) -> bytes | None:
        """The whole body; None when the client has gone. TooLarge, TooSlow and Overloaded beyond the bounds."""
        if announced > self._max_body_bytes + DISCARDED_BYTES:
            raise self._too_large()
        chunks, size, has_room = [], 0, True
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    has_room = has_room and size <= self._max_body_bytes and take(len(part))
                    if has_room:
                        chunks.append(part)
                    else:
                        chunks.clear()
                    if not message.get("more_body", False) or size > self._max_body_bytes + DISCARDED_BYTES:
                        break
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {self._body_timeout_s:g} s") from None
        if size > self._max_body_bytes:
            raise self._too_large()
        if not has_room:
            raise Overloaded("the bodies of other requests take all room there is; try again later", retry_after_s=1)
        return b"".join(chunks)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is larger than the {self._max_body_bytes} bytes this server takes; split the request"
        )

    def _record(self, scope: Scope, status: int, took_s: float) -> None:
        # The route's template, so that unknown paths and names do not become labels.
        endpoint = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.request_seconds.labels(endpoint).observe(took_s)


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Every exception an endpoint may raise becomes a response of the one shape."""

    async def refuse(_: Request, error: Exception) -> Response:
        refusal = as_refusal(error)
        assert refusal, "registered for its kinds only"
        metrics.refused.labels(refusal.reason).inc()
        return refusal_response(refusal)

    async def refuse_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return json_response({"error": {"message": error.detail, "type": "http"}}, error.status_code)

    async def fail(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.scope["path"], exc_info=error)
        message = "internal error; the server's log says more"
        return json_response({"error": {"message": message, "type": "internal"}}, HTTPStatus.INTERNAL_SERVER_ERROR)

    kinds: list[type[Exception]] = [Refused, *KSERVE_ERRORS]
    for kind in kinds:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(HTTPException, refuse_http)
    app.add_exception_handler(Exception, fail)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then whatever comes (a disconnect)."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay

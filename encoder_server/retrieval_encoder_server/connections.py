"""Connections with an age, as a subclass of uvicorn's HTTP protocol.

Uvicorn closes a connection after a response that says `Connection: close`; whether it must say so is decided when the
response starts, by `must_end_connection` in the request's scope (see `http.py`). Here live the clock of a connection
and the closing of idle ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retrieval_encoder_server.lifecycle import Lifecycle, idle_close_at

SCOPE_EXTENSION = "retrieval.must_end_connection"
# What a request may have beside its body: first line, headers, trailers, the lengths of its chunks. uvicorn's parser
# bounds none of it. Roomy, for the read in which it begins (256 KiB at most) is counted as a whole.
MAX_HEAD_BYTES = 512 * 2**10
_CHUNKED = 8  # bytes that one byte of a body may come in: a chunk of its own takes 6


class AgingConnection(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, *, lifecycle: Lifecycle, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._lifecycle = lifecycle
        self._expires_at = 0.0
        self._active_at = 0.0
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._active_at = self.loop.time()
        self._expires_at = self._lifecycle.connection_expires_at(self._active_at)
        self._timer = self.loop.call_at(self._expires_at, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        # Not with each byte: a head that never ends would keep its connection.
        self._active_at = self.loop.time()
        self._head_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {SCOPE_EXTENSION: self._must_end}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= _CHUNKED * len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._active_at = self.loop.time()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """No request is being received in full or answered."""
        return self.cycle is None or self.cycle.response_complete

    def _must_end(self) -> bool:
        # A client that has pipelined further requests gets those answered first.
        return not self.pipeline and self._lifecycle.must_end(self._expires_at, self.loop.time())

    def _close_if_idle(self) -> None:
        if self.transport.is_closing():
            return
        now = self.loop.time()
        close_at = idle_close_at(self._expires_at, self._active_at if self.is_idle else now)
        if now >= close_at:
            self.transport.close()
        else:
            self._timer = self.loop.call_at(close_at, self._close_if_idle)

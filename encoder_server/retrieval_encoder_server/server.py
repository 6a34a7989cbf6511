"""The process's HTTP server: uvicorn with a drain on TERM, and the gRPC server that starts and stops with it.

Why not KServe's `ModelServer`: on TERM it unregisters the model first, so that requests in flight get 404, and uvicorn
stops at once; it also has no setting for the address, and serves an endpoint by which anybody may unload the model.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from retrieval_core.log import get_logger
from retrieval_encoder_server.connections import AgingConnection
from retrieval_encoder_server.grpc_server import GrpcServer
from retrieval_encoder_server.lifecycle import Lifecycle
from retrieval_encoder_server.listening import accept_waiting, stop_handshakes
from retrieval_encoder_server.settings import Settings

# Handshakes that have begun get this long to end; across a data centre one takes below a millisecond.
HANDSHAKE_S = 0.05
# After the listening socket is closed, a connection accepted at the last moment gets this long to send its request.
LAST_CALL_S = 1.0

log = get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """Uvicorn, stopped by `Lifecycle` instead of by the signal itself."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        lifecycle: Lifecycle,
        on_started: Callable[[], None] = lambda: None,
        beside: GrpcServer | None = None,
    ) -> None:
        """`on_started` is called once, when connections are accepted and TERM means drain."""
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(AgingConnection, lifecycle=lifecycle),  # type: ignore[arg-type]
                interface="asgi3",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # Ages end connections. Uvicorn's own idle timer has no part in it and only guards against a defect.
                timeout_keep_alive=int(2 * settings.connection_age_seconds) + 60,
                timeout_graceful_shutdown=int(settings.request_timeout_seconds) + 1,
            )
        )
        self._lifecycle = lifecycle
        self._on_started = on_started
        self._grpc = beside
        self._said_draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            await self._grpc.start()
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM begins the drain; again TERM changes nothing. INT (a person at a terminal) ends it, again INT forces."""
        if sig == signal.SIGINT and self._lifecycle.is_drained():
            self.force_exit = True
        self._lifecycle.begin_drain(immediately=sig == signal.SIGINT)  # no log here: a write to stderr is not reentrant

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the main loop."""
        if self._lifecycle.is_draining and not self._said_draining:
            self._said_draining = True
            log.info("draining", connections=len(self.server_state.connections))
        return await super().on_tick(counter) or self._lifecycle.is_drained()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the ports, and let what is in flight finish."""
        await asyncio.gather(self._shutdown_http(sockets or []), self._shutdown_grpc())
        log.info("stopped", requests=self.server_state.total_requests)

    async def _shutdown_grpc(self) -> None:
        if self._grpc is None:
            return
        stopping = asyncio.create_task(self._grpc.stop())
        while not stopping.done() and not self.force_exit:
            await asyncio.wait([stopping], timeout=0.1)
        if self.force_exit:
            await self._grpc.stop(immediately=True)
        await stopping

    async def _shutdown_http(self, sockets: list[socket.socket]) -> None:
        """Close the listening socket without resetting who has just connected, then let requests in flight finish."""
        await self._close_listeners(sockets)
        deadline = asyncio.get_running_loop().time() + LAST_CALL_S
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets=[])

    async def _close_listeners(self, sockets: list[socket.socket]) -> None:
        """The kernel resets connections that wait in the backlog of a closed socket: accept them first."""
        for listener in sockets:
            stop_handshakes(listener)
        await asyncio.sleep(HANDSHAKE_S)
        accepted = [connection for listener in sockets for connection in accept_waiting(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._new_connection, connection)

    def _new_connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

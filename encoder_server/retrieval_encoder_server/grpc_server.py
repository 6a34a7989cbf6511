"""KServe's V2 protocol over gRPC, on a port of its own beside the HTTP server.

KServe's servicer answers; around each call stands what `http.py` puts around each response: ids, the expected bundle,
errors as codes, metrics. KServe's own `GRPCServer` is not used: it listens on every address, shares its port with any
other process that asks for the same, and its connections have no age.

Ids travel as trailing metadata. As initial metadata they would count as the beginning of an answer, after which gRPC
clients do not retry a refused call (gRFC A6).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.servicer import InferenceServicer

from retrieval_core.errors import TemporarilyUnavailable
from retrieval_core.log import get_logger
from retrieval_encoder_server.batcher import Clock
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.model import ServerDataPlane, as_refusal
from retrieval_encoder_server.refusals import (
    Malformed,
    NotInTime,
    NotServed,
    Overloaded,
    Refused,
    TooLarge,
    Unavailable,
    WrongBundle,
)
from retrieval_encoder_server.service import Service
from retrieval_encoder_server.settings import Settings

EXPECTED_BUNDLE_KEY = "x-expected-bundle-id"
# By these, anybody who reaches the port could unload the model. gRPC answers UNIMPLEMENTED.
NOT_OFFERED = {"RepositoryModelLoad", "RepositoryModelUnload"}
# A message travels as metadata, of which clients take 8 KiB; a character can take 12 bytes there. Errors of KServe
# repeat what the caller has sent.
MAX_MESSAGE = 500

# With 10 % jitter, the oldest connection ends after 88 % of the drain; the rest is for calls that it still carries.
SHARE_OF_DRAIN = 0.8
# Connections shorter than this would cost more in handshakes than they save at a stop. A gut feeling.
LEAST_AGE_S = 1.0

Metadata = tuple[tuple[str, str], ...]

CODES: Mapping[type[Refused], grpc.StatusCode] = {
    Malformed: grpc.StatusCode.INVALID_ARGUMENT,
    # Not RESOURCE_EXHAUSTED, which clients retry: this request will never be taken.
    TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    WrongBundle: grpc.StatusCode.FAILED_PRECONDITION,
    NotServed: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotInTime: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}

log = get_logger(__name__)


class Envelope(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # untyped library
    """Around every call; all of KServe's are one request, one response."""

    def __init__(self, service: Service, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock
        ids = service.ids
        self._id_metadata = (("x-bundle-id", ids.bundle_id), ("x-generation-id", ids.generation_id or ""))

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        handler = await continuation(call)
        if handler is None or call.method.rpartition("/")[2] in NOT_OFFERED:
            return None

        async def answer(request: Any, context: Any) -> Any:
            return await self._answer(handler.unary_unary, call.method, request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    async def _answer(self, method: Callable[..., Awaitable[Any]], name: str, request: Any, context: Any) -> Any:
        started_at = self._clock()
        code = grpc.StatusCode.CANCELLED  # by a client that has gone, or whose deadline has passed
        try:
            self._require_expected_bundle(context)
            response = await method(request, context)
            context.set_trailing_metadata(self._id_metadata)
            code = grpc.StatusCode.OK
            return response
        except Exception as error:  # whatever it is, its caller must get an answer
            code, message, pushback = self._failure(name, error)
        finally:
            self._metrics.requests.labels(name, code.name).inc()
            self._metrics.request_seconds.labels(name).observe(self._clock() - started_at)
        # After it was counted: whoever has this answer may look at the metrics at once.
        return await context.abort(code, message, (*self._id_metadata, *pushback))

    def _failure(self, name: str, error: Exception) -> tuple[grpc.StatusCode, str, Metadata]:
        """Code, message and own metadata of the answer to a call that ended with `error`."""
        refusal = as_refusal(error)
        if refusal is None:
            log.error("request failed", path=name, exc_info=error)
            return grpc.StatusCode.INTERNAL, "internal error; the server's log says more", ()
        self._metrics.refused.labels(refusal.reason).inc()
        return CODES[type(refusal)], str(refusal)[:MAX_MESSAGE], _pushback(refusal)

    def _require_expected_bundle(self, context: Any) -> None:
        for key, value in context.invocation_metadata():
            if key == EXPECTED_BUNDLE_KEY:
                self._service.require_bundle(value, EXPECTED_BUNDLE_KEY)


class GrpcServer:
    """Start and stop it inside one event loop."""

    def __init__(
        self,
        data_plane: ServerDataPlane,
        service: Service,
        settings: Settings,
        metrics: Metrics,
        claimed: socket.socket,
    ) -> None:
        """`claimed`: bound to the address to listen on, by `listening.bind`; to be closed after the server."""
        self._servicer = InferenceServicer(data_plane, model_repository_extension=None)
        self._envelope = Envelope(service, metrics)
        self._settings = settings
        self._claimed = claimed
        self._server: Any = None

    @property
    def address(self) -> str:
        host, port = self._claimed.getsockname()[:2]
        return f"[{host}]:{port}" if self._claimed.family == socket.AF_INET6 else f"{host}:{port}"

    async def start(self) -> None:
        """Accept calls. Raises TemporarilyUnavailable when another process has begun to listen on the claimed port."""
        self._server = grpc.aio.server(
            interceptors=[self._envelope],
            options=server_options(self._settings),
            maximum_concurrent_rpcs=max(1, self._settings.max_bodies_bytes // self._settings.max_body_bytes),
        )
        add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        try:
            self._server.add_insecure_port(self.address)
        except RuntimeError:
            raise TemporarilyUnavailable(
                f"{self.address} is in use by another process; stop that process, or choose another GRPC_PORT"
            ) from None
        await self._server.start()

    async def stop(self, *, immediately: bool = False) -> None:
        """Close the port and let calls in flight finish. A second call may cut short the first."""
        await self._server.stop(0 if immediately else _grace_s(self._settings))


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of gRPC core (grpc_types.h); what is not named keeps its default."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_connection_age_ms", int(1000 * connection_age_s(settings))),
        ("grpc.max_connection_age_grace_ms", int(1000 * _grace_s(settings))),
    ]


def connection_age_s(settings: Settings) -> float:
    """How long a connection lives, before gRPC's own jitter, which is 10 % as well.

    Ended by age, a connection loses no call. Ended by `stop`, it loses what is on the wire (measured: one call each of
    13 of 16 busy clients), and gRPC has no other way to end one. So each is to end within the drain, when clients that
    come back are already sent elsewhere; a drain too short for that (0: none is wanted) is left out of account.
    """
    within_drain_s = SHARE_OF_DRAIN * settings.drain_seconds
    if within_drain_s < LEAST_AGE_S:
        return settings.connection_age_seconds
    return min(settings.connection_age_seconds, within_drain_s)


def _grace_s(settings: Settings) -> float:
    """Calls in flight end by their own deadline; this is a little later."""
    return settings.request_timeout_seconds + 1


def _pushback(refusal: Refused) -> Metadata:
    """Retry-After in gRPC's own terms (gRFC A6): clients with a retry policy wait for so long."""
    seconds = refusal.retry_after_s
    return () if seconds is None else (("grpc-retry-pushback-ms", str(1000 * seconds)),)

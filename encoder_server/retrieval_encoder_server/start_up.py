"""Everything between the claimed ports and the first answer: open, prove, assemble."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from retrieval_core.log import get_logger
from retrieval_encoder_server.grpc_server import GrpcServer
from retrieval_encoder_server.http import Envelope
from retrieval_encoder_server.lifecycle import Lifecycle
from retrieval_encoder_server.loading import open_engine
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.model import EncoderModel, ServerDataPlane
from retrieval_encoder_server.routes import build_app
from retrieval_encoder_server.service import Service
from retrieval_encoder_server.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True)
class Ready:
    """A server that may be started."""

    app: Envelope
    service: Service
    lifecycle: Lifecycle
    metrics: Metrics
    grpc: GrpcServer | None

    def describe(self) -> dict[str, Any]:
        ids = self.service.ids
        return {
            "bundle": ids.bundle_id,
            "generation": ids.generation_id,
            "dimension": ids.dimension,
            "items": ids.count,
            "grpc": self.grpc.address if self.grpc else None,
        }


def prepare(settings: Settings, grpc_claim: socket.socket | None) -> Ready:
    """Open and prove the bundle and generation. BadInput or BadArguments when they cannot be served.

    `grpc_claim`: bound to where gRPC will listen; None for no gRPC.
    """
    engine = open_engine(settings)
    metrics = Metrics()
    lifecycle = Lifecycle(connection_age_s=settings.connection_age_seconds, drain_s=settings.drain_seconds)
    service = Service(engine, settings, metrics)
    ids = engine.ids
    metrics.served.info(
        {"bundle_id": ids.bundle_id, "generation_id": ids.generation_id or "", "dimension": str(ids.dimension)}
    )
    data_plane = ServerDataPlane(EncoderModel(settings.model_name, service), service, lifecycle)
    app = build_app(data_plane, service, settings, metrics)
    grpc = GrpcServer(data_plane, service, settings, metrics, grpc_claim) if grpc_claim else None
    return Ready(app, service, lifecycle, metrics, grpc)

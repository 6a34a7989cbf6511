"""The endpoints: parse, call the service, write bytes.

V1 and V2 inference and health are KServe's own endpoint functions, one by one: its `register_v2_endpoints` would also
add one by which anybody who reaches the port can unload the model.
"""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from retrieval_encoder_server.engine import Vectors
from retrieval_encoder_server.http import Envelope, add_error_handlers, json_response
from retrieval_encoder_server.inference import parse_inference
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.model import ServerDataPlane
from retrieval_encoder_server.refusals import NotServed
from retrieval_encoder_server.schemas import EmbeddingsRequest, RetrieveRequest, parse
from retrieval_encoder_server.service import Service
from retrieval_encoder_server.settings import Settings


class Endpoints:
    """The endpoints that are ours."""

    def __init__(self, service: Service, settings: Settings, metrics: Metrics, v2: V2Endpoints) -> None:
        self._service = service
        self._v2 = v2
        self._model_name = settings.model_name
        self._metrics = metrics

    async def ids(self) -> Response:
        ids = self._service.ids
        return json_response(
            {
                "bundle_id": ids.bundle_id,
                "generation_id": ids.generation_id,
                "dimension": ids.dimension,
                "count": ids.count,
            }
        )

    async def embeddings(self, request: Request) -> Response:
        """OpenAI's embeddings: https://platform.openai.com/docs/api-reference/embeddings."""
        asked = parse(EmbeddingsRequest, await request.body())
        if asked.model not in {None, self._model_name}:
            raise NotServed(f"model: found {asked.model!r:.80}, this server has {self._model_name!r}")
        embedded = await self._service.embed(asked.inputs(), asked.dimensions)
        encoded = _base64(embedded.vectors) if asked.encoding_format == "base64" else list(embedded.vectors)
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)
                ],
                "model": self._model_name,
                "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
            }
        )

    async def retrieve(self, request: Request) -> Response:
        hits = await self._service.retrieve(parse(RetrieveRequest, await request.body()))
        ids = self._service.ids
        return json_response(
            {
                "ids": hits.ids,
                "scores": hits.scores,
                "bundle_id": ids.bundle_id,
                "generation_id": ids.generation_id,
            }
        )

    async def infer(self, request: Request, response: Response, model_name: str) -> Any:
        """KServe's, with a body that is read here (`inference.py`)."""
        asked = parse_inference(await request.body(), request.headers)
        return await self._v2.infer(request, response, model_name, asked)

    async def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": content_type})


def build_app(data_plane: ServerDataPlane, service: Service, settings: Settings, metrics: Metrics) -> Envelope:
    """The ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app, metrics)
    v1, v2 = V1Endpoints(data_plane), V2Endpoints(data_plane)
    ours = Endpoints(service, settings, metrics, v2)
    routes: list[tuple[str, str, Any]] = [
        ("GET", "/v1/ids", ours.ids),
        ("POST", "/v1/embeddings", ours.embeddings),
        ("POST", "/v1/retrieve", ours.retrieve),
        ("GET", "/metrics", ours.metrics),
        ("GET", "/v1/models", v1.models),
        ("GET", "/v1/models/{model_name}", v1.model_ready),
        ("POST", "/v1/models/{model_name}:predict", v1.predict),
        ("GET", "/v2", v2.metadata),
        ("GET", "/v2/health/live", v2.live),
        ("GET", "/v2/health/ready", v2.ready),
        ("GET", "/v2/models", v2.models),
        ("GET", "/v2/models/{model_name}", v2.model_metadata),
        ("GET", "/v2/models/{model_name}/ready", v2.model_ready),
        ("POST", "/v2/models/{model_name}/infer", ours.infer),
    ]
    for method, path, endpoint in routes:
        app.add_api_route(path, endpoint, methods=[method], response_model=None, status_code=HTTPStatus.OK)
    return Envelope(
        app,
        ids=service.ids,
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=settings.max_bodies_bytes,
        metrics=metrics,
    )


def _base64(vectors: Vectors) -> list[str]:
    """Little-endian float32, as OpenAI's clients decode it."""
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]

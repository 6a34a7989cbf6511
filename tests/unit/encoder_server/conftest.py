"""A server whose model and index are small and predictable; everything between them and HTTP is real."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry

from retrieval_core.prompts.spec import PromptSpec
from retrieval_encoder_server.engine import Engine
from retrieval_encoder_server.lifecycle import Lifecycle
from retrieval_encoder_server.metrics import Metrics
from retrieval_encoder_server.model import EncoderModel, ServerDataPlane
from retrieval_encoder_server.routes import build_app
from retrieval_encoder_server.service import Service
from retrieval_encoder_server.settings import Settings

BUNDLE_ID = "b-0123456789abcdef"
GENERATION_ID = "g-fedcba9876543210"
FULL, SERVED, SMALL = 8, 4, 2
LONGEST_TOKEN = 4
ITEMS = [f"item-{number}" for number in range(20)]

PROMPTS = PromptSpec.model_validate(
    {
        "member": {
            "fields": [
                {"name": "headline", "rendering": "text", "maxTokens": 8},
                {"name": "industry", "rendering": "category", "maxTokens": 4},
                {"name": "activity", "rendering": "percentile"},
            ],
            "history": {"maxItems": 3, "fields": [{"name": "title", "rendering": "text", "maxTokens": 4}]},
            "maxTokens": 64,
        },
        "item": {"fields": [{"name": "words", "rendering": "percentile"}], "maxTokens": 16},
    }
)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def vector_of(token_ids: Sequence[int], width: int = FULL) -> np.ndarray:
    """A unit vector that only the ids decide: float32 [width]."""
    digest = hashlib.sha256(bytes(token_ids)).digest()
    vector = np.frombuffer(digest[:FULL], dtype=np.int8).astype(np.float32)[:width] + 0.5
    return vector / np.linalg.norm(vector)


def tokenise(text: str) -> list[int]:
    """One token per byte; the engine is told of LONGEST_TOKEN, as if there were others."""
    return list(text.encode())


def encode(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    return np.stack([vector_of(ids) for ids in prompts])


class PlainRenderer:
    """Prompts that show the features as they were given."""

    def member(self, features: Mapping[str, Any]) -> str:
        return "m" + ",".join(f"{name}={features[name]}" for name in sorted(features) if name != "history")

    def item(self, features: Mapping[str, Any]) -> str:
        return "i" + ",".join(f"{name}={features[name]}" for name in sorted(features))


@dataclass
class ExactIndex:
    """Brute force over ITEMS; `author` is the parity of an item's number."""

    id: str = GENERATION_ID
    count: int = len(ITEMS)
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"author": None})
    calls: int = 0

    def __post_init__(self) -> None:
        self.vectors = np.stack([vector_of(tokenise(item), SERVED) for item in ITEMS])

    def search(self, queries: np.ndarray, k: int, exclude: Any = None, allowed: Any = None) -> SimpleNamespace:
        self.calls += 1
        found = SimpleNamespace(ids=[], scores=[])
        for query, hidden in zip(queries, exclude, strict=True):
            scores = self.vectors @ query
            rows = [row for row in np.argsort(-scores, kind="stable") if ITEMS[row] not in hidden]
            if allowed:
                rows = [row for row in rows if ("even", "odd")[row % 2] in allowed["author"]]
            found.ids.append(np.array([ITEMS[row] for row in rows[:k]]))
            found.scores.append(scores[rows[:k]])
        return found

    def member_vector(self, member_id: str) -> np.ndarray | None:
        return self.vectors[7] if member_id == "known" else None


def make_engine(
    index: ExactIndex | None = None,
    encode: Callable[..., np.ndarray] = encode,
    tokenise: Callable[[str], list[int]] = tokenise,
) -> Engine:
    return Engine(
        bundle_id=BUNDLE_ID,
        prompts=PROMPTS,
        full_dimension=FULL,
        dimensions=[SERVED, SMALL],
        served_dimension=SERVED,
        renderer=PlainRenderer(),
        tokenise=tokenise,
        longest_token=LONGEST_TOKEN,
        encode=encode,
        index=index,
    )


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Without the coloured tracebacks of the default, which take seconds; reset after a test that configures logs."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


class Client(httpx.AsyncClient):
    """The requests that tests of several topics make."""

    async def embed(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/embeddings", json=body)

    async def retrieve(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/retrieve", json=body)


@pytest.fixture
def error_of() -> Callable[[httpx.Response], str]:
    """The message of an error response, which has the one shape of them all."""

    def message(response: httpx.Response) -> str:
        document = response.json()
        assert set(document) == {"error"}, "one error shape everywhere"
        assert set(document["error"]) == {"message", "type"}
        return str(document["error"]["message"])

    return message


@dataclass
class Server:
    """One server under test, and the handles to look inside."""

    service: Service
    lifecycle: Lifecycle
    metrics: Metrics
    clock: Clock
    settings: Settings
    data_plane: ServerDataPlane
    client: Client

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
async def start_server() -> AsyncIterator[Callable[..., Server]]:
    """`start_server(max_inputs=2)` starts a server; `index=None`: without an index; `encode=f`: with another model."""
    started: list[Server] = []

    def start(
        index: ExactIndex | str | None = "exact",
        encode: Callable[..., np.ndarray] = encode,
        tokenise: Callable[[str], list[int]] = tokenise,
        **settings: Any,
    ) -> Server:
        parsed = Settings(bundle_uri="unused", **settings)
        clock, metrics = Clock(), Metrics(CollectorRegistry())
        engine = make_engine(ExactIndex() if isinstance(index, str) else index, encode, tokenise)
        service = Service(engine, parsed, metrics, clock, probe_timeout_s=30)
        lifecycle = Lifecycle(connection_age_s=60, drain_s=10, clock=clock)
        data_plane = ServerDataPlane(EncoderModel(parsed.model_name, service), service, lifecycle)
        transport = httpx.ASGITransport(build_app(data_plane, service, parsed, metrics), raise_app_exceptions=False)
        client = Client(transport=transport, base_url="http://test")
        server = Server(service, lifecycle, metrics, clock, parsed, data_plane, client)
        service.start()
        started.append(server)
        return server

    yield start
    for server in started:
        await server.client.aclose()
        server.service.stop()


@dataclass
class Hanging:
    """`hanging(stage)` is that stage of a server, but does not go on before `release` is set."""

    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    calls: int = 0

    def __call__(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        def hang(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            self.entered.set()
            assert self.release.wait(10)
            return stage(*arguments, **named)

        return hang


@pytest.fixture
def hanging(start_server: Callable[..., Server]) -> Iterator[Hanging]:
    """Released before the servers are stopped."""
    hanging = Hanging()
    yield hanging
    hanging.release.set()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def client(server: Server) -> Client:
    return server.client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world() -> SimpleNamespace:
    """What the predictable server is made of, for expectations."""
    return SimpleNamespace(
        bundle_id=BUNDLE_ID,
        generation_id=GENERATION_ID,
        full=FULL,
        served=SERVED,
        small=SMALL,
        items=ITEMS,
        prompts=PROMPTS,
        longest_token=LONGEST_TOKEN,
        tokenise=tokenise,
        encode=encode,
        index=ExactIndex,
        make_engine=make_engine,
        vector=lambda text, width=SERVED: vector_of(tokenise(text), width),
    )

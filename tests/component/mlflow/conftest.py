"""A real `mlflow server`, one for all tests of the directory that do not harm it; each test has objects of its own."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.api.objects import RetrievalModel, parse_manifests

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {{name: {name}}}
spec:
  storage: {{uri: file:///storage}}
  data: {{uri: file:///data, revision: "1"}}
  model: {{base: file:///base}}
  promotion: {{gates: [{{min: "0.1"}}]}}
"""


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(LocalHome(tmp_path_factory.mktemp("mlflow")), Supervisor())
    asyncio.run(start(server))
    # MLflow 3.17 imports a module within its first search, and a second one meanwhile fails on the half of it (500).
    search = {"experiment_ids": ["0"]}
    httpx.post(f"{server.uri()}/api/2.0/mlflow/runs/search", json=search, trust_env=False).raise_for_status()
    yield server.uri()
    asyncio.run(server.stop())


async def start(server: MlflowServer) -> None:
    await server.ensure()
    await server.wait_until_healthy()


@pytest.fixture
def new_model() -> Any:
    """A RetrievalModel that no other test has."""

    def make(name: str = "") -> RetrievalModel:
        return parse_manifests(MANIFEST.format(name=name or f"feed-{next(_numbers)}"), "test")[0]

    return make


_numbers = itertools.count()


@pytest.fixture
def model(new_model) -> RetrievalModel:
    return new_model()


@pytest.fixture
async def new_registry(mlflow_uri):
    """Another control plane; `transport` may watch or disturb its requests."""
    made: list[MlflowRegistry] = []

    def make(**settings: Any) -> MlflowRegistry:
        made.append(MlflowRegistry({"default": Connection(uri=mlflow_uri)}, **settings))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()


@pytest.fixture
def registry(new_registry) -> MlflowRegistry:
    return new_registry()


class Meanwhile(httpx.AsyncHTTPTransport):
    """Counts requests, and lets something else happen right before the first request to `path`."""

    def __init__(self, path: str = "", happens: Any = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._path = path
        self._happens = happens

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = request.url.path.removeprefix("/api/2.0/mlflow/")
        self.calls.append(call)
        if call == self._path and self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()
        return await super().handle_async_request(request)


@pytest.fixture
def meanwhile() -> type[Meanwhile]:
    return Meanwhile


class Program:
    """What a workload does to its run: log the artifact, then set the tag (docs/contracts.md, section 2, Report)."""

    def __init__(self, uri: str) -> None:
        self._http = httpx.Client(base_url=uri, trust_env=False)

    def upload(self, run_id: str, path: str, content: bytes) -> None:
        root = self.run(run_id)["info"]["artifact_uri"].removeprefix("mlflow-artifacts:")
        self._http.put(f"/api/2.0/mlflow-artifacts/artifacts{root}/{path}", content=content).raise_for_status()

    def report(self, run_id: str, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.upload(run_id, "report.json", content)
        self.post("runs/set-tag", run_id=run_id, key="retrieval.report", value=hashlib.sha256(content).hexdigest())

    def run(self, run_id: str) -> dict[str, Any]:
        return self.get("runs/get", run_id=run_id)["run"]

    def get(self, path: str, **params: str) -> dict[str, Any]:
        return self._http.get(f"/api/2.0/mlflow/{path}", params=params).raise_for_status().json()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        return self._http.post(f"/api/2.0/mlflow/{path}", json=body).raise_for_status().json()


@pytest.fixture
def program(mlflow_uri) -> Program:
    return Program(mlflow_uri)

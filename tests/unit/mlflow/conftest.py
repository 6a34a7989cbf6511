"""A scripted MLflow: each test lists what is asked and what is answered, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.api.objects import RetrievalModel, parse_manifests

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed}
spec:
  storage: {uri: file:///storage}
  data: {uri: file:///data, revision: "1"}
  model: {base: file:///base}
  promotion: {gates: [{min: "0.1"}]}
"""


@dataclass
class Script:
    """Answers in order; a request that is not the expected one fails the test.

    Also the transport. An answer is (status, JSON), bytes (of an artifact), or an exception of the transport.
    """

    steps: list[tuple[str, Any]]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        call = f"{request.method} {request.url.path.removeprefix('/api/2.0/mlflow/')}"
        assert self.steps, f"one request too many: {call}"
        expected, answer = self.steps.pop(0)
        assert call == expected
        self.requests.append(request)
        match answer:
            case Exception():
                raise answer
            case bytes():
                return httpx.Response(200, content=answer)
            case (int() as status, str() as text):
                return httpx.Response(status, text=text)
            case (int() as status, document):
                return httpx.Response(status, json=document)
            case document:
                return httpx.Response(200, json=document)

    def body(self, index: int) -> Any:
        return json.loads(self.requests[index].content)


@pytest.fixture
def model() -> RetrievalModel:
    return parse_manifests(MANIFEST, "test")[0]


@pytest.fixture
async def scripted():
    """`registry, script = scripted([("POST runs/search", {...}), ...])`; at the end every step was used."""
    made: list[tuple[MlflowRegistry, Script]] = []

    def make(steps: list[tuple[str, Any]]) -> tuple[MlflowRegistry, Script]:
        script = Script(list(steps))
        connections = {"default": Connection(uri="http://mlflow.test")}
        registry = MlflowRegistry(connections, now=lambda: 1000.0, transport=httpx.MockTransport(script))
        made.append((registry, script))
        return registry, script

    yield make
    for registry, script in made:
        await registry.close()
        assert script.steps == [], "these requests were expected and not made"


@pytest.fixture
def run_entry() -> Callable[..., dict[str, Any]]:
    """A run as MLflow answers it."""

    def entry(run_id: str, start_time: int = 1, *, status: str = "FINISHED", **tags: str) -> dict[str, Any]:
        named = {"owner": "local/default/feed", "retrieval.step": "train", "retrieval.key": "k"} | tags
        return {
            "info": {
                "run_id": run_id,
                "status": status,
                "start_time": start_time,
                "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts",
                "lifecycle_stage": "active",
            },
            "data": {"tags": [{"key": key, "value": value} for key, value in named.items()]},
        }

    return entry


@pytest.fixture
def missing() -> tuple[int, dict[str, str]]:
    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not there"}

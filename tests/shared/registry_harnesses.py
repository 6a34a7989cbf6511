"""The adapters of the port Registry, and what programs and reviewers do there."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import httpx
import pytest
from contract_objects import TIMEOUT_S

from retrieval_operator.adapters.memory import MemoryRegistry
from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import Registry


class RegistryHarness(Protocol):
    registry: Registry

    async def report(self, model: RetrievalModel, step: str, key: str, document: Mapping[str, Any]) -> None:
        """What a program does when its last file is complete (docs/contracts.md section 2)."""

    async def tag_version(self, model: RetrievalModel, version: str, tag: str, value: str) -> None:
        """What a reviewer does on the version's page."""

    async def lose_connection(self) -> None:
        """From now on nothing of the registry is reachable."""


class MemoryRegistryHarness:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()

    async def report(self, model: RetrievalModel, step: str, key: str, document: Mapping[str, Any]) -> None:
        self.registry.attach_report(model, step, key, document)

    async def tag_version(self, model: RetrievalModel, version: str, tag: str, value: str) -> None:
        self.registry.tag_version(model, version, tag, value)

    async def lose_connection(self) -> None:
        self.registry.fail("observe", times=100)


class MlflowRegistryHarness(httpx.AsyncHTTPTransport):
    """A real MLflow server, shared by the tests: each is a cluster of its own, and its models are deleted afterwards.

    Also the transport between the adapter and the server.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._is_connected = True
        self._http = httpx.AsyncClient(base_url=uri, trust_env=False, timeout=TIMEOUT_S)
        cluster = f"test-{uuid.uuid4().hex}"
        self.registry = MlflowRegistry({"default": Connection(uri=uri)}, cluster=cluster, transport=self)

    async def report(self, model: RetrievalModel, step: str, key: str, document: Mapping[str, Any]) -> None:
        run_id = (await self.registry.observe(model)).runs[f"{step}:{key}"].run_id
        run = (await self._call("GET", "mlflow/runs/get", params={"run_id": run_id}))["run"]
        content = json.dumps(document).encode()
        artifacts = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        await self._call("PUT", f"mlflow-artifacts/artifacts/{artifacts}/report.json", content=content)
        tag = {"run_id": run_id, "key": "retrieval.report", "value": hashlib.sha256(content).hexdigest()}
        await self._call("POST", "mlflow/runs/set-tag", json=tag)

    async def tag_version(self, model: RetrievalModel, version: str, tag: str, value: str) -> None:
        body = {"name": model.registered_model_name, "version": version, "key": tag, "value": value}
        await self._call("POST", "mlflow/model-versions/set-tag", json=body)

    async def lose_connection(self) -> None:
        self._is_connected = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._is_connected:
            raise httpx.ConnectError("no route to host")
        return await super().handle_async_request(request)

    async def close(self) -> None:
        await self.registry.close()
        for found in (await self._call("GET", "mlflow/registered-models/search")).get("registered_models", []):
            await self._call("DELETE", "mlflow/registered-models/delete", json={"name": found["name"]})
        await self._http.aclose()

    async def _call(self, method: str, path: str, **parts: Any) -> Any:
        response = await self._http.request(method, f"/api/2.0/{path}", **parts)
        response.raise_for_status()
        return response.json() if response.content else None


@asynccontextmanager
async def memory_registry() -> AsyncIterator[RegistryHarness]:
    yield MemoryRegistryHarness()


@asynccontextmanager
async def mlflow_registry(uri: str) -> AsyncIterator[RegistryHarness]:
    harness = MlflowRegistryHarness(uri)
    yield harness
    await harness.close()


REGISTRIES: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[RegistryHarness]]] = {
    "memory": lambda _request: memory_registry(),
    "mlflow": lambda request: mlflow_registry(request.getfixturevalue("mlflow_uri")),
}

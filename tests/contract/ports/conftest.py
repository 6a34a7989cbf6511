"""The adapters that each port's contract is tested against, and what a test does to the world behind them.

To add an adapter, write a harness beside its neighbours (tests/shared/*_harnesses.py) and add one line to the port's
dictionary there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from contract_objects import eventually, manifest, stack_record, with_uid
from model_store_harnesses import MODEL_STORES, ModelStoreHarness
from registry_harnesses import REGISTRIES, RegistryHarness
from serving_harnesses import SERVINGS, ServingHarness
from workloads_harnesses import WORKLOADS, WorkloadsHarness

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep


def _with_processes(names: Mapping[str, Any]) -> list[Any]:
    """All but the fakes start real processes."""
    fakes = ("memory", "kubernetes")
    return [pytest.param(name, marks=[] if name.startswith(fakes) else [pytest.mark.component]) for name in names]


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any]], Any]:
    return eventually


@pytest.fixture
def make_manifest() -> Callable[..., RetrievalModel]:
    return manifest


@pytest.fixture
def as_other_object() -> Callable[[RetrievalModel], RetrievalModel]:
    """The object deleted and created again under the same name."""
    return lambda model: with_uid(model, "uid-2")


@pytest.fixture(params=MODEL_STORES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStoreHarness:
    return MODEL_STORES[request.param](tmp_path)


@pytest.fixture(params=_with_processes(WORKLOADS))
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkloadsHarness]:
    async with WORKLOADS[request.param](tmp_path) as harness:
        yield harness


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., WorkloadSpec]:
    """attempt(1) is the first attempt at the same piece of work."""

    def make(number: int = 1, **fields: Any) -> WorkloadSpec:
        name = f"feed-0123abcd-train-{number}"
        return WorkloadSpec(
            **{
                "name": name,
                "step": WorkloadStep.TRAIN,
                "key": "0123abcd",
                "attempt": number,
                "program": "retrieval-train",
                "arguments": (str(tmp_path), name),
                **fields,
            }
        )

    return make


@pytest.fixture(params=_with_processes(SERVINGS))
async def serving(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServingHarness]:
    async with SERVINGS[request.param](tmp_path) as harness:
        yield harness


@pytest.fixture
def record() -> Callable[..., StackRecord]:
    return stack_record


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(LocalHome(tmp_path_factory.mktemp("mlflow")), Supervisor())

    async def start() -> None:
        await server.ensure()
        await server.wait_until_healthy()

    asyncio.run(start())
    yield server.uri()
    asyncio.run(server.stop())


@pytest.fixture(params=_with_processes(REGISTRIES))
def opened_registry(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[RegistryHarness]:
    """Not async: the server is started before the event loop of the test runs."""
    return REGISTRIES[request.param](request)


@pytest.fixture
async def records(opened_registry: AbstractAsyncContextManager[RegistryHarness]) -> AsyncIterator[RegistryHarness]:
    async with opened_registry as harness:
        yield harness

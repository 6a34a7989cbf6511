"""The adapters that each port's contract is tested against, and what a test does to the world behind them.

To add an adapter, write a harness with the methods of its neighbours and add one line to the port's dictionary.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from kubernetes_world import KubernetesWorld, termination_message

from retrieval_operator.adapters.kubernetes.kinds import (
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    RETRIEVAL_MODEL,
    SERVICE,
)
from retrieval_operator.adapters.kubernetes.models import KubernetesModelStore
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.programs import Program
from retrieval_operator.adapters.memory import MemoryModelStore, MemoryRegistry, MemoryWorld
from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.ports import ModelStore, Registry, Stacks, Traffic, Workloads

PROGRAMS_DIRECTORY = Path(__file__).parent / "programs"
PROGRAMS = {
    "retrieval-train": Program(target=(str(PROGRAMS_DIRECTORY / "program.py"),)),
    "retrieval-encoder-server": Program(target=(str(PROGRAMS_DIRECTORY / "server.py"),)),
}
NOW = 1_700_000_000
# Generous: it only ends tests that fail.
TIMEOUT_S = 20.0


async def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of the condition, which may be a coroutine function."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any]], Any]:
    return eventually


def manifest(name: str = "feed", **spec: Any) -> RetrievalModel:
    return parse_manifest(
        {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": name},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "promotion": {"gates": [{"min": "0.1"}]},
                **spec,
            },
        },
        "test",
    )


def with_uid(model: RetrievalModel, uid: str) -> RetrievalModel:
    return model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": uid})})


def in_cluster(world: KubernetesWorld, model: RetrievalModel) -> RetrievalModel:
    """The object as it is in the world, with the UID it got there."""
    type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
    metadata = {"name": model.metadata.name, "namespace": model.metadata.namespace}
    return with_uid(model, world.put({**type_, "metadata": metadata, "spec": {}})["metadata"]["uid"])


def stack_record(stack: str, bundle_uri: str = "/bundle") -> StackRecord:
    return StackRecord(
        stack=stack,
        bundle_id=f"b-{stack}",
        bundle_uri=bundle_uri,
        generation_id=f"g-{stack}",
        generation_uri="/generation",
        generation_key="key",
        serving_hash="hash",
        revision="revision",
    )


# ModelStore ----------------------------------------------------------------------------------------------------------


class ModelStoreHarness(Protocol):
    store: ModelStore

    async def create(self, manifest: RetrievalModel) -> RetrievalModel: ...

    async def annotate(self, key: str, name: str, value: str) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        """(reason, message, count)"""


class MemoryModels:
    def __init__(self) -> None:
        self.store = MemoryModelStore()

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        return self.store.apply(manifest, now=NOW)

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.store.annotate(key, {name: value})

    async def delete(self, key: str) -> None:
        self.store.request_deletion(key, now=NOW)

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        return [(record.event.reason, record.event.message, record.count) for record in self.store.events(key)]


class LocalModels:
    def __init__(self, home: LocalHome) -> None:
        self.store = LocalMachine(home, repairs=False).store

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        return self.store.apply(manifest, now=NOW).model

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.store.annotate(key, {name: value})

    async def delete(self, key: str) -> None:
        self.store.request_deletion(key, now=NOW)

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        return [(record.reason, record.message, record.count) for record in self.store.events(key)]


class KubernetesModels:
    def __init__(self) -> None:
        self.world = KubernetesWorld(lambda: NOW)
        self.world.watch(RETRIEVAL_MODEL)
        self.store = KubernetesModelStore(self.world.api, self.world.cache, lambda: NOW, instance="test")

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        metadata = {"name": manifest.metadata.name, "namespace": manifest.metadata.namespace}
        type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
        self.world.put({**type_, "metadata": metadata, "spec": manifest.spec.explicit()})
        model = await self.store.get(manifest.key)
        assert model is not None
        return model

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.world.change(RETRIEVAL_MODEL, *key.split("/"), {"metadata": {"annotations": {name: value}}})

    async def delete(self, key: str) -> None:
        self.world.remove(RETRIEVAL_MODEL, *key.split("/"))

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        found = self.world.objects(EVENT)
        return [(event["reason"], event["message"], event["count"]) for event in found]


MODEL_STORES: dict[str, Callable[[Path], ModelStoreHarness]] = {
    "memory": lambda _path: MemoryModels(),
    "local": lambda path: LocalModels(LocalHome(path / "home")),
    "kubernetes": lambda _path: KubernetesModels(),
}


@pytest.fixture(params=MODEL_STORES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStoreHarness:
    return MODEL_STORES[request.param](tmp_path)


# Workloads -----------------------------------------------------------------------------------------------------------


class WorkloadsHarness(Protocol):
    workloads: Workloads
    model: RetrievalModel

    def finish(self, name: str, code: int, *, reason: str = "", message: str = "") -> None:
        """Let the workload end like this."""

    def times_run(self, name: str) -> int: ...


class MemoryWorkloadsHarness:
    def __init__(self) -> None:
        self._world = MemoryWorld(lambda: NOW)
        self.workloads = self._world.workloads
        self.model = with_uid(manifest(), "uid-1")

    def finish(self, name: str, code: int, *, reason: str = "", message: str = "") -> None:
        self._world.workloads.finish(name, code, reason=reason, message=message)

    def times_run(self, name: str) -> int:
        return self._world.workloads.created.count(name)


class LocalWorkloadsHarness:
    def __init__(self, path: Path) -> None:
        self.machine = LocalMachine(LocalHome(path / "home"), repairs=False, programs=PROGRAMS)
        self.workloads = self.machine.workloads
        self.model = with_uid(manifest(), "uid-1")
        self._path = path

    def finish(self, name: str, code: int, *, reason: str = "", message: str = "") -> None:
        wish = self._path / f"{name}.wish"
        wish.write_text(json.dumps({"code": code, "reason": reason, "message": message}))
        wish.rename(self._path / f"{name}.finish")

    def times_run(self, name: str) -> int:
        ran = self._path / f"{name}.ran"
        return len(ran.read_text().splitlines()) if ran.exists() else 0


@asynccontextmanager
async def memory_workloads(_path: Path) -> AsyncIterator[WorkloadsHarness]:
    yield MemoryWorkloadsHarness()


@asynccontextmanager
async def local_workloads(path: Path) -> AsyncIterator[WorkloadsHarness]:
    harness = LocalWorkloadsHarness(path)
    yield harness
    await harness.machine.stop_everything()


class KubernetesWorkloadsHarness:
    """Over the API server in memory; the Job's controller, or the training-operator, does what `finish` says."""

    def __init__(self, backend: str) -> None:
        self.world = KubernetesWorld(lambda: NOW)
        self.world.watch(JOB, PYTORCH_JOB, POD)
        images = {"trainer": "trainer:1", "indexer": "indexer:1", "data": "data:1"}
        self.workloads = KubernetesWorkloads(self.world.api, self.world.cache, lambda: NOW, images=images, reporting={})
        self.model = with_uid(manifest(training={"backend": backend}), "uid-of-the-object")
        self._finish = self.world.finish_job if backend == "Job" else self.world.finish_pytorch_job

    def finish(self, name: str, code: int, *, reason: str = "", message: str = "") -> None:
        said = termination_message(reason, message) if message else ""
        self._finish(self.model.metadata.namespace, name, code, message=said)

    def times_run(self, name: str) -> int:
        pods = [pod["metadata"]["name"] for pod in self.world.objects(POD)]
        return sum(pod.startswith(name) for pod in pods)


@asynccontextmanager
async def kubernetes_job(_path: Path) -> AsyncIterator[WorkloadsHarness]:
    yield KubernetesWorkloadsHarness("Job")


@asynccontextmanager
async def kubernetes_pytorch_job(_path: Path) -> AsyncIterator[WorkloadsHarness]:
    yield KubernetesWorkloadsHarness("PyTorchJob")


WORKLOADS: dict[str, Callable[[Path], AbstractAsyncContextManager[WorkloadsHarness]]] = {
    "memory": memory_workloads,
    "local": local_workloads,
    "kubernetes Job": kubernetes_job,
    "kubernetes PyTorchJob": kubernetes_pytorch_job,
}


def _with_processes(names: Mapping[str, Any]) -> list[Any]:
    """All but the fakes start real processes."""
    fakes = ("memory", "kubernetes")
    return [pytest.param(name, marks=[] if name.startswith(fakes) else [pytest.mark.component]) for name in names]


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


# Stacks and Traffic --------------------------------------------------------------------------------------------------


class ServingHarness(Protocol):
    stacks: Stacks
    traffic: Traffic
    model: RetrievalModel

    async def become_ready(self, stack: str) -> None:
        """Wait until all replicas of the stack are ready, or make them so."""

    async def break_down(self, stack: str) -> None:
        """Wait until the stack (made from a record whose bundle URI ends in "broken") has failed, or make it fail."""


class MemoryServing:
    def __init__(self) -> None:
        world = MemoryWorld(lambda: NOW)
        self.stacks, self.traffic = world.stacks, world.traffic
        self.model = with_uid(manifest(), "uid-1")

    async def become_ready(self, stack: str) -> None:
        self.stacks.make_ready(stack)

    async def break_down(self, stack: str) -> None:
        self.stacks.break_down(stack)


class LocalServing:
    def __init__(self, path: Path) -> None:
        self.machine = LocalMachine(LocalHome(path / "home"), repairs=True, programs=PROGRAMS)
        self.stacks, self.traffic = self.machine.stacks, self.machine.traffic
        self.model = with_uid(manifest(), "uid-1")

    async def become_ready(self, stack: str) -> None:
        async def is_ready() -> bool:
            seen = (await self.stacks.observe(self.model))[stack]
            return seen.ready_replicas == seen.replicas

        await eventually(is_ready)

    async def break_down(self, stack: str) -> None:
        async def has_failed() -> bool:
            return bool((await self.stacks.observe(self.model))[stack].failed)

        await eventually(has_failed)


class KubernetesServing:
    """The world's KServe makes no pods by itself: a test says when they run, or how they end."""

    def __init__(self) -> None:
        self.world = KubernetesWorld(lambda: NOW)
        self.world.watch(SERVICE, POD, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)
        self.model = in_cluster(self.world, manifest())
        images = {"encoderServer": "server:test"}
        self.stacks = KubernetesStacks(self.world.api, self.world.cache, lambda: NOW, images=images)
        self.traffic = KubernetesTraffic(self.world.api, self.world.cache)

    async def become_ready(self, stack: str) -> None:
        wanted = (await self.stacks.observe(self.model))[stack].replicas
        self.world.add_predictor_pods("default", f"feed-{stack}", wanted)

    async def break_down(self, stack: str) -> None:
        for pod in self.world.add_predictor_pods("default", f"feed-{stack}", 1, ready=False):
            ended = {"exitCode": 65, "message": termination_message("BadInput", "no bundle")}
            waits = {"waiting": {"reason": "CrashLoopBackOff"}}
            container = {"name": "c", "restartCount": 1, "state": waits, "lastState": {"terminated": ended}}
            status = {"phase": "Running", "containerStatuses": [container]}
            self.world.change(POD, "default", pod, {"status": status})


@asynccontextmanager
async def kubernetes_serving(_path: Path) -> AsyncIterator[ServingHarness]:
    yield KubernetesServing()


@asynccontextmanager
async def memory_serving(_path: Path) -> AsyncIterator[ServingHarness]:
    yield MemoryServing()


@asynccontextmanager
async def local_serving(path: Path) -> AsyncIterator[ServingHarness]:
    harness = LocalServing(path)
    yield harness
    await harness.machine.stop_everything()


SERVINGS: dict[str, Callable[[Path], AbstractAsyncContextManager[ServingHarness]]] = {
    "memory": memory_serving,
    "local": local_serving,
    "kubernetes": kubernetes_serving,
}


@pytest.fixture(params=_with_processes(SERVINGS))
async def serving(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServingHarness]:
    async with SERVINGS[request.param](tmp_path) as harness:
        yield harness


@pytest.fixture
def record() -> Callable[..., StackRecord]:
    return stack_record


# Registry ------------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(LocalHome(tmp_path_factory.mktemp("mlflow")), Supervisor())

    async def start() -> None:
        await server.ensure()
        await server.wait_until_healthy()

    asyncio.run(start())
    yield server.uri()
    asyncio.run(server.stop())


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


@pytest.fixture(params=_with_processes(REGISTRIES))
def opened_registry(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[RegistryHarness]:
    """Not async: the server is started before the event loop of the test runs."""
    return REGISTRIES[request.param](request)


@pytest.fixture
async def records(opened_registry: AbstractAsyncContextManager[RegistryHarness]) -> AsyncIterator[RegistryHarness]:
    async with opened_registry as harness:
        yield harness


@pytest.fixture
def make_manifest() -> Callable[..., RetrievalModel]:
    return manifest


@pytest.fixture
def as_other_object() -> Callable[[RetrievalModel], RetrievalModel]:
    """The object deleted and created again under the same name."""
    return lambda model: with_uid(model, "uid-2")

"""The adapters of the port Workloads, and how programs end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from contract_objects import NOW, PROGRAMS, manifest, with_uid
from kubernetes_world import KubernetesWorld, termination_message

from retrieval_operator.adapters.kubernetes.kinds import JOB, POD, PYTORCH_JOB
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import Workloads


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

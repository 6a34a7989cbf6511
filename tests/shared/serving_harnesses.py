"""The adapters of the ports Stacks and Traffic, which belong together, and how servers get ready or fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from contract_objects import NOW, PROGRAMS, eventually, in_cluster, manifest, with_uid
from kubernetes_world import KubernetesWorld, termination_message

from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, POD, POD_DISRUPTION_BUDGET, SERVICE
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import Stacks, Traffic


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
        self.traffic = KubernetesTraffic(self.world.api, self.world.cache, lambda: NOW)

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

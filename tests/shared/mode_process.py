"""An operator process over the in-memory API server, without kopf: what its life in a cluster is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from controller_examples import NOW
from kubernetes_world import KubernetesWorld

from retrieval_operator.adapters.kubernetes.kinds import LEASE, RETRIEVAL_MODEL
from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.kubernetes_mode import KubernetesMode
from retrieval_operator.perform import Ports
from retrieval_operator.settings import Settings

MODEL = {
    "apiVersion": RETRIEVAL_MODEL.api_version,
    "kind": RETRIEVAL_MODEL.kind,
    "metadata": {"name": "feed", "namespace": "ml"},
    "spec": {
        "storage": {"uri": "/storage"},
        "data": {"uri": "/data", "revision": "1"},
        "model": {"base": "preset:tiny"},
        "promotion": {"gates": [{"min": "0.1"}]},
    },
}


@asynccontextmanager
async def ports_of_nothing(mode: KubernetesMode) -> AsyncIterator[Ports]:
    """The objects of the cluster; what runs for them is in memory, where nothing ever ends."""
    memory = MemoryWorld(lambda: NOW)
    yield Ports(
        models=mode.models,
        workloads=memory.workloads,
        stacks=memory.stacks,
        traffic=memory.traffic,
        registry=memory.registry,
        surroundings=memory.surroundings,
    )


class Process:
    """It waits for its Lease, then follows the objects of its namespaces (none named: of all); `stop` ends it."""

    def __init__(
        self, world: KubernetesWorld, *namespaces: str, make_ports: Callable[..., Any] = ports_of_nothing
    ) -> None:
        self.world = world
        settings = Settings(own_namespace="operator", namespaces=list(namespaces))
        self.mode = KubernetesMode(settings, world, make_ports)
        self.stop = asyncio.Event()

    async def start(self) -> asyncio.Task[None]:
        await self.mode.discover()
        return asyncio.create_task(self.mode.run(self.stop))

    def status(self) -> Any:
        return self.world.object(RETRIEVAL_MODEL, "ml", "feed").get("status")

    def holder(self) -> Any:
        return self.world.object(LEASE, "operator", "retrieval-operator")["spec"].get("holderIdentity")


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until it is so; a test that waits in vain is ended by its time-out."""
    while not condition():
        await asyncio.sleep(0)

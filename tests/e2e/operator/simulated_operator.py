"""The operator as a process: the real watches, Lease, cache, objects, statuses and events over a real API server.

Synthetic is what runs for an object: workloads, stacks, traffic and registry are the in-memory fakes. Every program
ends well a moment after it was started, with a passing report; every stack is ready at once. With the variable
SIMULATED_PORTS, a path, the fakes go on from where the former process left them (remembered_ports.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import remembered_ports
from prometheus_client import REGISTRY, start_http_server

from retrieval_operator import kopf_app
from retrieval_operator.adapters.kubernetes.client import connected
from retrieval_operator.adapters.memory import MemoryRegistry, MemoryWorkloads, MemoryWorld
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadSpec
from retrieval_operator.kubernetes_mode import KubernetesMode, now
from retrieval_operator.perform import Ports
from retrieval_operator.settings import load_settings
from retrieval_operator.telemetry import ObjectStates, configure_foreign_logging, configure_logging

PROGRAM_S = 0.05


class ShortPrograms(MemoryWorkloads):
    """Each ends well a moment after it was started, and wakes its object as the watch of its Job would."""

    def __init__(self, mode: KubernetesMode, registry: MemoryRegistry) -> None:
        super().__init__(now)
        self._mode = mode
        self._registry = registry

    async def start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        await super().start(model, workload)
        asyncio.get_running_loop().call_later(PROGRAM_S, self._end_well, model, workload)

    def _end_well(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        if workload.name not in self.running():  # stopped, deleted, or started twice
            return
        if report := passing_report(workload):  # to collect and to encode are steps without a run
            self._registry.attach_report(model, workload.step, workload.key, report)
        self.finish(workload.name)
        self._mode.queue.add(model.key)


@asynccontextmanager
async def simulated_ports(mode: KubernetesMode) -> AsyncIterator[Ports]:
    world = MemoryWorld(now, ready_at_once=True)
    world.workloads = ShortPrograms(mode, world.registry)
    memory = Path(path) if (path := os.environ.get("SIMULATED_PORTS")) else None
    if memory and memory.exists():
        remembered_ports.load(world, memory)
    yield Ports(
        models=mode.models,
        workloads=world.workloads,
        stacks=world.stacks,
        traffic=world.traffic,
        registry=world.registry,
        surroundings=world.surroundings,
    )
    if memory:  # ended in good order
        remembered_ports.save(world, memory)


async def main() -> None:
    settings = load_settings()
    configure_logging("json", settings.log_level)
    configure_foreign_logging()
    async with connected("retrieval-operator-test") as client:
        mode = KubernetesMode(settings, client, simulated_ports)
        if settings.metrics_port:
            REGISTRY.register(ObjectStates(mode.statuses, now))
            start_http_server(settings.metrics_port)
        await kopf_app.serve(mode)


if __name__ == "__main__":
    asyncio.run(main())

"""The operator as a process: the real watches, Lease, cache, objects, statuses and events over a real API server.

Synthetic is what runs for an object: workloads, stacks, traffic and registry are the in-memory fakes. Every program
ends well a moment after it was started, with a passing report; every stack is ready at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY, start_http_server

from retrieval_operator import kopf_app
from retrieval_operator.adapters.kubernetes.client import connected
from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.kubernetes_mode import KubernetesMode, now
from retrieval_operator.perform import Ports
from retrieval_operator.ports import PortError
from retrieval_operator.settings import load_settings
from retrieval_operator.telemetry import ChampionAges, configure_foreign_logging, configure_logging

PROGRAM_S = 0.05


@asynccontextmanager
async def simulated_ports(mode: KubernetesMode) -> AsyncIterator[Ports]:
    world = MemoryWorld(now, ready_at_once=True)
    playing = asyncio.create_task(play(mode, world))
    try:
        yield Ports(
            models=mode.models,
            workloads=world.workloads,
            stacks=world.stacks,
            traffic=world.traffic,
            registry=world.registry,
            surroundings=world.surroundings,
        )
    finally:
        playing.cancel()


async def play(mode: KubernetesMode, world: MemoryWorld) -> None:
    """Let programs end, and wake the object as the watch of its Jobs would."""
    while True:
        await asyncio.sleep(PROGRAM_S)
        running = set(world.workloads.running())
        for key in await mode.models.keys():
            try:
                model = await mode.models.get(key)
            except PortError:  # it cannot be read; its status says so
                continue
            if model is None:
                continue
            for attempt in await world.workloads.observe(model):
                if attempt.name not in running:
                    continue
                spec = world.workloads.specs[attempt.name]
                world.registry.attach_report(model, spec.step, spec.key, passing_report(spec))
                world.workloads.finish(attempt.name)
                mode.queue.add(model.key)


async def main() -> None:
    settings = load_settings()
    configure_logging("json", settings.log_level)
    configure_foreign_logging()
    async with connected("retrieval-operator-test") as client:
        mode = KubernetesMode(settings, client, simulated_ports)
        if settings.metrics_port:
            REGISTRY.register(ChampionAges(mode.statuses, now))
            start_http_server(settings.metrics_port)
        await kopf_app.serve(mode)


if __name__ == "__main__":
    asyncio.run(main())

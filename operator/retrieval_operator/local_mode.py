"""Local mode: the same controller and decisions, with this machine's adapters. The only place that wires them.

A home is a directory (adapters/local/home.py). Whoever holds its controller lock (instance.py) may call `run`; every
other command only reads, applies manifests and sets annotations, and the watch below finds what they changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.programs import PROGRAMS, ProgramTable
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.adapters.mlflow.connection import Connection
from retrieval_operator.adapters.mlflow.registry import MlflowRegistry
from retrieval_operator.controller import Controller, OnAction, ignore_action
from retrieval_operator.domain.decide import decide
from retrieval_operator.perform import Ports
from retrieval_operator.ports import PortError
from retrieval_operator.settings import Settings
from retrieval_operator.work_queue import WorkQueue

_log = structlog.get_logger("retrieval_operator.local")

DEFAULT_CONNECTION = "default"
# Whatever the watch does not see (a file edited by hand, a clock that was set) is looked at this often. A gut feeling.
_RESYNC_S = 60.0
# MLflow starts again by itself when it dies; this finds it when even its supervising process is gone.
_MLFLOW_CHECK_S = 5.0
# While it starts (6 s and more), everybody waits for it.
_MLFLOW_START_POLL_S = 0.5


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


class LocalMode:
    """One home: its objects, and on request its ports and its control plane."""

    def __init__(
        self, settings: Settings, *, programs: ProgramTable = PROGRAMS, on_action: OnAction = ignore_action
    ) -> None:
        self.settings = settings
        self.home = LocalHome(settings.home)
        self.models = LocalModelStore(self.home)
        # This home's own MLflow; None when the settings name another one.
        self.mlflow = None if settings.mlflow_uri else MlflowServer(self.home, Supervisor())
        self._programs = programs
        self._on_action = on_action

    def machine(self, *, repairs: bool = False) -> LocalMachine:
        """The adapters. `repairs`: looking also starts again what is gone, which only the controller may."""
        return LocalMachine(
            self.home,
            repairs=repairs,
            tracking_uri=self._tracking_uri(),
            preferred_ports=self.settings.ports,
            programs=self._programs,
        )

    @asynccontextmanager
    async def ports(self, machine: LocalMachine) -> AsyncIterator[Ports]:
        """The ports over these adapters; their connections end with the context."""
        connection = Connection(uri=self._tracking_uri())
        registry = MlflowRegistry({DEFAULT_CONNECTION: connection}, cluster=self.settings.cluster)
        try:
            yield Ports(
                models=machine.store,
                workloads=machine.workloads,
                stacks=machine.stacks,
                traffic=machine.traffic,
                registry=registry,
                surroundings=machine.surroundings,
            )
        finally:
            await registry.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Be the control plane of this home until `stop` is set. The caller holds the controller lock.

        Workloads, servers and MLflow are processes of their own: they go on when this ends.
        """
        machine = self.machine(repairs=True)
        async with self.ports(machine) as ports:
            controller = Controller(
                ports, decide, now, registry_poll_s=self.settings.registry_poll_seconds, on_action=self._on_action
            )
            queue = WorkQueue()
            watch = Watch(ports, queue, machine.collect_garbage)
            async with asyncio.TaskGroup() as group:
                group.create_task(controller.work(queue, self.settings.workers))
                group.create_task(watch.follow(stop, self.settings.poll_seconds))
                if self.mlflow is not None:
                    group.create_task(_keep_running(self.mlflow, stop, watch.add_all))
                await stop.wait()
                queue.stop()

    async def down(self) -> None:
        """Stop every process of this home; its data stays. Stop the controller first: it would start them again."""
        await self.machine().stop_everything()

    def _tracking_uri(self) -> str:
        return self.settings.mlflow_uri or (self.mlflow.uri() if self.mlflow else "")


class Watch:
    """Adds the keys whose object or children changed. What Kubernetes' watches do, by looking once per interval.

    An object that vanished leaves processes behind: `collect_garbage` ends them, as owner references do on Kubernetes.
    """

    def __init__(self, ports: Ports, queue: WorkQueue, collect_garbage: Callable[[], Awaitable[object]]) -> None:
        self._ports = ports
        self._queue = queue
        self._collect_garbage = collect_garbage
        self._seen: dict[str, object] = {}
        self._resync_at = 0.0

    async def follow(self, stop: asyncio.Event, interval_s: float) -> None:
        while not stop.is_set():
            try:
                await self.look()
            except PortError as error:
                _log.warning("the home cannot be watched", error=str(error))
            except Exception:  # the boundary: trouble with a directory must not end the control plane
                _log.exception("the home cannot be watched")
            await _pause(stop, interval_s)

    async def add_all(self) -> None:
        """Something changed that concerns every object."""
        for key in await self._ports.models.keys():
            self._queue.add(key)

    async def look(self) -> None:
        """One look at everything."""
        loop = asyncio.get_running_loop()
        keys = set(await self._ports.models.keys())
        resync = loop.time() >= self._resync_at
        if resync or self._seen.keys() - keys:
            await self._try_to_collect_garbage()
        if resync:
            self._seen.clear()
            self._resync_at = loop.time() + _RESYNC_S
        for key in sorted(keys):
            seen = await self._look_at(key)
            if seen != self._seen.get(key):
                self._queue.add(key)
            self._seen[key] = seen
        for key in self._seen.keys() - keys:
            del self._seen[key]
            self._queue.add(key)

    async def _try_to_collect_garbage(self) -> None:
        """What cannot be collected waits for the next time; the living objects are watched all the same."""
        try:
            await self._collect_garbage()
        except PortError as error:
            _log.warning("garbage cannot be collected", error=str(error))
        except Exception:
            _log.exception("garbage cannot be collected")

    async def _look_at(self, key: str) -> object:
        """A value that is another one after each change that a pass should see; None for an object that is gone."""
        try:
            model = await self._ports.models.get(key)
            if model is None:
                return None
            workloads = await self._ports.workloads.observe(model)
            stacks = await self._ports.stacks.observe(model)
            traffic = await self._ports.traffic.observe(model)
        except PortError as error:
            return str(error)  # a pass says it to people
        except Exception as error:  # a damaged file, a defect: the other objects must not suffer
            if repr(error) != self._seen.get(key):
                _log.exception("an object cannot be watched", object=key)
            return repr(error)
        return (
            model.metadata,
            [(workload.name, workload.state) for workload in workloads],
            [(stack, seen.ready_replicas, seen.replicas, seen.failed) for stack, seen in stacks.items()],
            traffic.version,
        )


async def _keep_running(server: MlflowServer, stop: asyncio.Event, on_return: Callable[[], Awaitable[None]]) -> None:
    """Start MLflow and look after it; call `on_return` when it answers (again).

    Without it the controller goes on, so its trouble is only told, once.
    """
    told, healthy = "", False
    while not stop.is_set():
        try:
            await server.ensure()
            was_healthy, healthy = healthy, await server.is_healthy()
            if healthy and not was_healthy:
                await on_return()
            told = ""
        except Exception as error:  # the boundary: a full disk or a defect must not end the control plane
            if repr(error) != told:
                known = isinstance(error, PortError)
                _log.warning("MLflow cannot be looked after", error=str(error), exc_info=None if known else error)
            told, healthy = repr(error), False
        await _pause(stop, _MLFLOW_CHECK_S if healthy else _MLFLOW_START_POLL_S)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)

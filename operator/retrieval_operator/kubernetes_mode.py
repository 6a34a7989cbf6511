"""The control plane in a cluster: the same controller and decisions, with Kubernetes' adapters. Wires them.

    discover    list every watched kind, so that the watches (kopf_app) are started for what the cluster has
    run         wait for the Lease -> list again -> reconcile -> (told to stop) end the passes -> hand the Lease on

Nothing is decided before the first listing of every kind is in. A definition that is installed later (KServe, the
training-operator) ends the process in good order: started again, it watches that kind, too. So does a namespace (of
several) in which we lose our rights, which is left out then, and one that was left out and can be listed again.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog

from retrieval_operator.adapters.kubernetes import own_pod
from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache, WriteThrough
from retrieval_operator.adapters.kubernetes.feed import OPTIONAL, WATCHED, Feed, NamespaceRefused
from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL, Kind
from retrieval_operator.adapters.kubernetes.lease import LeaderLease
from retrieval_operator.adapters.kubernetes.models import KubernetesModelStore, read_status
from retrieval_operator.adapters.kubernetes.programs import Reporting
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.surroundings import KubernetesSurroundings
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.adapters.mlflow.connection import Connection
from retrieval_operator.adapters.mlflow.registry import MlflowRegistry
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.controller import PASS_DEADLINE_S, Controller, OnAction, ignore_action
from retrieval_operator.domain.decide import decide
from retrieval_operator.perform import Ports
from retrieval_operator.ports import PortError, Retryable
from retrieval_operator.settings import ENVIRONMENT_PREFIX, InvalidSettings, Settings
from retrieval_operator.telemetry import LEADER
from retrieval_operator.work_queue import WorkQueue

log = structlog.get_logger("retrieval_operator.kubernetes")

LEASE_NAME = "retrieval-operator"
# A watch starts with a listing, and so does one that was lost, after an outage for instance: the resync after it finds
# what vanished before. The others are for what no watch ever tells. Gut feelings, with an eye on idle traffic.
_RESYNC_AFTER_LISTING_S = 15.0
_RESYNC_S = 600.0
_MISSING_KINDS_S = 60.0
_RETRY_AFTER_RESYNC_S = 10.0
_RETRY_S = 5.0
# The lease loop turns every 30 s, and one request takes at most as long.
_HEARTBEAT_LIMIT_S = 150.0
# What is left of a pod's grace period (60 s in the chart) hands the Lease on. A pass may be cut anywhere.
_LAST_PASSES_S = 40.0


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


class KubernetesMode:
    """One operator process: its view of the cluster, its place in the queue for the Lease, its control plane.

    `make_ports` opens the ports around this mode's `api`, `cache` and `models`; None: `cluster_ports`.
    """

    def __init__(
        self,
        settings: Settings,
        api: KubernetesApi,
        make_ports: Callable[[KubernetesMode], AbstractAsyncContextManager[Ports]] | None = None,
        *,
        on_action: OnAction = ignore_action,
    ) -> None:
        self.settings = settings
        self.cache = Cache()
        self.api = WriteThrough(api, self.cache)
        self.queue = WorkQueue()
        self.feed = Feed(api, self.cache, settings.namespaces, self.queue.add)
        identity = _identity()
        self.models = KubernetesModelStore(self.api, self.cache, now, instance=identity)
        self._make_ports = make_ports or cluster_ports
        self._on_action = on_action
        self._lease = LeaderLease(
            api,
            _lease_namespace(settings),
            LEASE_NAME,
            identity,
            monotonic=time.monotonic,
            wall=time.time,
            sleep=self._pause,
        )
        self._heartbeat_at = time.monotonic()
        self._kinds: frozenset[Kind] = frozenset()  # that are watched
        self._relisted = asyncio.Event()

    async def discover(self) -> list[Kind]:
        """The kinds to watch: those that the cluster has. To be called before `run`.

        Waits for an API server that answers, and for our own definition. Leaves out the namespaces that may not be
        listed; raises Rejected when none may.
        """
        while True:
            try:
                served = await self._list_all()
                break
            except NamespaceRefused as error:
                if not self.feed.leave_out(error.namespace):
                    raise
                log.warning(
                    "a namespace is left out: the operator has no rights in it; take it out of watch.namespaces if it "
                    "is gone, else give the rights again with `helm upgrade`",
                    namespace=error.namespace,
                    error=str(error),
                )
        log.info(
            "watching", kinds=list(map(str, served)), missing=[str(kind) for kind in WATCHED if kind not in served]
        )
        self._kinds = frozenset(served)
        return served

    async def _list_all(self) -> list[Kind]:
        told = ""
        while True:
            try:
                served = [kind for kind in WATCHED if await self.feed.resync(kind)]
                if set(served) >= set(WATCHED) - set(OPTIONAL):
                    return served
                trouble = f"the definition of {RETRIEVAL_MODEL} is not installed"
            except Retryable as error:
                trouble = str(error)
            if trouble != told:
                log.warning("the cluster is not ready; trying again", error=trouble)
            told = trouble
            await self._pause(_RETRY_S)

    def statuses(self) -> list[tuple[str, str, RetrievalModelStatus]]:
        """(namespace, name, status) of every object, as last seen."""
        return [
            (obj["metadata"]["namespace"], obj["metadata"]["name"], read_status(obj))
            for obj in self.cache.all(RETRIEVAL_MODEL)
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Be the control plane until `stop` is set, once the Lease is ours. Raises LeaseLost."""
        acquiring = asyncio.create_task(self._lease.acquire())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if acquiring.done():
                await acquiring
                LEADER.set(1)
                await self._act(stop)
        finally:
            stopping.cancel()
            acquiring.cancel()
            LEADER.set(0)
            await self._lease.release()

    def health_problem(self) -> str:
        """Why this process must be started again, in a sentence; "" while it is well. Asks nobody."""
        silent_s = time.monotonic() - self._heartbeat_at
        if silent_s > _HEARTBEAT_LIMIT_S:
            return f"the control loop has not moved for {silent_s:.0f} s"
        # A pass is cut at its deadline; one that is still there holds its worker for good.
        longest_s = self.queue.longest_processing_s()
        return f"a pass has not ended for {longest_s:.0f} s" if longest_s > 2 * PASS_DEADLINE_S else ""

    def relisted(self) -> None:
        """A watch has listed its kind, to start with or because it was lost. Soon everything is listed once more.

        Every kind, since watches are lost together, and one of whose kind nothing is left cannot say that it was.
        """
        self._relisted.set()

    async def _act(self, stop: asyncio.Event) -> None:
        """Reconcile. Without the Lease everything is cut at once; told to stop, the passes under way end first."""
        async with self._make_ports(self) as ports:
            controller = Controller(
                ports, decide, now, registry_poll_s=self.settings.registry_poll_seconds, on_action=self._on_action
            )
            try:
                async with asyncio.TaskGroup() as group:
                    beside = [group.create_task(self._lease.hold())]
                    # What happened while we waited for the Lease.
                    self._stop_for_new(await self._list_all(), stop)
                    working = group.create_task(controller.work(self.queue, self.settings.workers))
                    beside.append(group.create_task(self._resync_at_times(stop)))
                    await stop.wait()
                    self.queue.stop()
                    await asyncio.wait({working}, timeout=_LAST_PASSES_S)
                    for task in (working, *beside):
                        task.cancel()
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors

    async def _resync_at_times(self, stop: asyncio.Event) -> None:
        """Find out what the watches did not tell. Asks for another start when something else is to be watched."""
        refused = ""
        now_s = asyncio.get_running_loop().time
        due_at = now_s() + _RESYNC_AFTER_LISTING_S
        while True:
            if await self._is_relisted_within(min(_MISSING_KINDS_S, max(0.0, due_at - now_s()))):
                due_at = min(due_at, now_s() + _RESYNC_AFTER_LISTING_S)
                continue
            everything = now_s() >= due_at
            if everything:
                due_at = now_s() + _RESYNC_S
            try:
                kinds = [kind for kind in WATCHED if everything or kind not in self._kinds]
                self._stop_for_new([kind for kind in kinds if await self.feed.resync(kind)], stop)
                if back := await self.feed.are_back():
                    log.info("namespaces can be listed; starting again to watch them", namespaces=back)
                    stop.set()
                refused = ""
            except NamespaceRefused as error:
                log.warning("a namespace could not be listed", namespace=error.namespace, error=str(error))
                if error.namespace == refused:  # still: kopf would try it for half an hour, then fail
                    log.warning("starting again; it is left out then, if there are others", namespace=error.namespace)
                    stop.set()
                refused = error.namespace
                due_at = now_s() + _RETRY_AFTER_RESYNC_S
            except PortError as error:  # the watches tell meanwhile; an API server that starts refuses for a moment
                log.warning("the cluster could not be listed; trying again", error=str(error))
                due_at = now_s() + _RETRY_AFTER_RESYNC_S

    async def _is_relisted_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._relisted.wait()
        except TimeoutError:
            return False
        self._relisted.clear()
        return True

    def _stop_for_new(self, served: Sequence[Kind], stop: asyncio.Event) -> None:
        if new := sorted(str(kind) for kind in served if kind not in self._kinds):
            log.info("definitions were installed; starting again to watch them", kinds=new)
            stop.set()

    async def _pause(self, seconds: float) -> None:
        self._heartbeat_at = time.monotonic()
        await asyncio.sleep(seconds)


@asynccontextmanager
async def cluster_ports(mode: KubernetesMode) -> AsyncIterator[Ports]:
    """The ports over the cluster and the configured MLflow servers; their connections end with the context."""
    settings, api, cache = mode.settings, mode.api, mode.cache
    images = settings.images.model_dump(by_alias=True)
    connections = {
        name: Connection(**connection.model_dump(exclude={"pod_secret"}))
        for name, connection in settings.connections.items()
    }
    reporting = {
        name: Reporting(tracking_uri=connection.uri, secret=connection.pod_secret)
        for name, connection in settings.connections.items()
    }
    registry = MlflowRegistry(connections, cluster=settings.cluster)
    try:
        yield Ports(
            models=mode.models,
            workloads=KubernetesWorkloads(api, cache, now, images=images, reporting=reporting),
            stacks=KubernetesStacks(api, cache, now, images=images),
            traffic=KubernetesTraffic(api, cache, now),
            registry=registry,
            surroundings=KubernetesSurroundings(api, cache, now),
        )
    finally:
        await registry.close()


def _lease_namespace(settings: Settings) -> str:
    """Raises InvalidSettings outside of a pod when none is set: a guess could be another than the other operator's."""
    namespace = settings.own_namespace or own_pod.namespace()
    if not namespace:
        raise InvalidSettings(
            f"{ENVIRONMENT_PREFIX}OWN_NAMESPACE: found nothing, and this is no pod; expected the namespace where "
            "this cluster's operator keeps its Lease (the chart's: where it is installed), for two operators with "
            "Leases in different namespaces would act at once"
        )
    return namespace


def _identity() -> str:
    """A pod's name: of its processes only one runs at a time, and after a crash the next one need not wait."""
    name = socket.gethostname()
    return name if own_pod.namespace() else f"{name}_{uuid.uuid4().hex[:8]}"

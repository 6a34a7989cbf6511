"""A Lease, so that two operators never act at once: client-go's leader election with one request per renewal.

Whether a lease of somebody else has run out is judged by the own clock alone: it has when it stood unchanged for its
duration while we looked. The holder stops before that, when it could not renew for RENEW_DEADLINE_S.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable

import structlog

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import LEASE, Object
from retrieval_operator.ports import Gone, PortError, Retryable, Stale

log = structlog.get_logger(__name__)

# Gut feelings. A renewal each 30 s is little traffic; a node that is lost costs its operator's successor 90 s. The
# same pod, started again, has the same identity and does not wait.
DURATION_S = 90
RENEW_EVERY_S = 30.0
RENEW_DEADLINE_S = 50.0  # with a last request of up to 30 s, the holder stops before the lease runs out
RETRY_EVERY_S = 5.0

Sleep = Callable[[float], Awaitable[None]]


class LeaseLost(Exception):
    """Somebody else holds the lease, or may soon: whoever acts must stop at once."""


class LeaderLease:
    """`identity` must be unique among the processes that run at the same time; a pod's name is.

    `monotonic` gives seconds that never go back; `wall` seconds since the epoch, for people who read the Lease.
    """

    def __init__(
        self,
        api: KubernetesApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._monotonic = monotonic
        self._wall = wall
        self._sleep = sleep
        self._version = ""  # of the Lease as we wrote it last; "": we do not hold it
        self._renewed_at = 0.0
        self._seen: tuple[str, float] = ("", 0.0)  # the version of somebody else's lease, and since when

    @property
    def is_held(self) -> bool:
        return self._version != ""

    async def acquire(self) -> None:
        """Wait until the lease is ours. Raises Rejected when we may not have one."""
        told = ""
        while True:
            try:
                holder = await self._try_to_acquire()
            except Retryable as error:
                holder = f"nobody knows: {error}"
            if not holder:
                log.info("lease acquired", lease=self._name, identity=self._identity)
                return
            if holder != told:
                log.info("waiting for the lease", lease=self._name, holder=holder)
            told = holder
            await self._sleep(RETRY_EVERY_S)

    async def hold(self) -> None:
        """Renew it for ever. Raises LeaseLost when it is another's, or was not renewed for RENEW_DEADLINE_S."""
        while True:
            await self._sleep(RENEW_EVERY_S)
            while not await self._try_to_renew():
                await self._sleep(RETRY_EVERY_S)

    async def release(self) -> None:
        """Let a successor have it at once. Without an answer it has to wait until the lease runs out."""
        if not self.is_held:
            return
        version, self._version = self._version, ""
        released = {"holderIdentity": None, "renewTime": None, "acquireTime": None}
        try:
            await self._api.patch(LEASE, self._namespace, self._name, {"spec": released}, resource_version=version)
        except PortError as error:
            log.warning("lease not released; it runs out by itself", lease=self._name, error=str(error))

    async def _try_to_acquire(self) -> str:
        """Who holds it; nobody ("") when it is ours now."""
        started = self._monotonic()
        lease = await self._api.get(LEASE, self._namespace, self._name)
        if lease is None:
            made = await self._api.create(self._document())
            return "somebody who was faster" if made is None else self._hold(made, started)
        holder = lease["spec"].get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._has_run_out(lease):
            return str(holder)
        spec = {**self._document()["spec"], "leaseTransitions": int(lease["spec"].get("leaseTransitions") or 0) + 1}
        version = lease["metadata"]["resourceVersion"]
        try:
            taken = await self._api.patch(LEASE, self._namespace, self._name, {"spec": spec}, resource_version=version)
        except (Stale, Gone):
            return "somebody who was faster"
        return self._hold(taken, started)

    async def _try_to_renew(self) -> bool:
        """False when it did not work this time. Raises LeaseLost."""
        started = self._monotonic()
        try:
            renewed = await self._renew()
        except PortError as error:
            if self._monotonic() - self._renewed_at >= RENEW_DEADLINE_S:
                self._version = ""
                raise LeaseLost(f"the lease could not be renewed for {RENEW_DEADLINE_S:.0f} s: {error}") from error
            log.warning("lease not renewed, trying again", lease=self._name, error=str(error))
            return False
        self._hold(renewed, started)
        return True

    async def _renew(self) -> Object:
        """Raises LeaseLost, or what the request raises."""
        patch = {"spec": {"renewTime": self._now()}}
        try:
            return await self._api.patch(LEASE, self._namespace, self._name, patch, resource_version=self._version)
        except (Stale, Gone):  # Stale also when the answer to our own renewal was lost
            self._version = (await self._still_ours())["metadata"]["resourceVersion"]
            return await self._api.patch(LEASE, self._namespace, self._name, patch, resource_version=self._version)

    async def _still_ours(self) -> Object:
        """The Lease, which still names us though it is another version. Raises LeaseLost, or what `get` raises."""
        lease = await self._api.get(LEASE, self._namespace, self._name)
        holder = lease["spec"].get("holderIdentity") if lease else None
        if lease is None or holder != self._identity:
            self._version = ""
            raise LeaseLost(f"the lease is held by {holder or 'nobody'} now")
        return lease

    def _hold(self, lease: Object, asked_at: float) -> str:
        """It is ours, for others since before `asked_at`: that is when our time begins."""
        self._version = lease["metadata"]["resourceVersion"]
        self._renewed_at = asked_at
        return ""

    def _has_run_out(self, lease: Object) -> bool:
        version, now = lease["metadata"]["resourceVersion"], self._monotonic()
        if self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] >= int(lease["spec"].get("leaseDurationSeconds") or DURATION_S)

    def _document(self) -> Object:
        now = self._now()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": now,
                "renewTime": now,
            },
        }

    def _now(self) -> str:
        """A MicroTime: RFC 3339 with six decimals."""
        return dt.datetime.fromtimestamp(self._wall(), dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

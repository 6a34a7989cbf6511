"""Stacks and traffic in memory. They know of each other as a cluster's Services and pods do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_operator.adapters.memory.faults import Clock, Fake
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import StackObserved, TrafficObserved
from retrieval_operator.ports import Rejected, Stale

# (owner's uid, stack id)
RunningStacks = Mapping[tuple[str, str], StackObserved]


class MemoryTraffic(Fake[Mapping[str, TrafficObserved]]):
    """Fills the port Traffic. `switches` lists every switch that took effect, as stack ids."""

    def __init__(self, stacks: MemoryStacks) -> None:
        super().__init__({})
        self._stacks = stacks
        self.switches: list[str] = []
        stacks.live_of = lambda uid: live.stack if (live := self._of(uid).live) else ""

    async def observe(self, model: RetrievalModel) -> TrafficObserved:
        with self._call("observe", model.key):
            return self._seen.get(model.metadata.uid, TrafficObserved(version="0"))

    async def switch(self, model: RetrievalModel, record: StackRecord, observed_version: str, now: int) -> None:
        with self._call("switch", record.stack):
            before = self._of(model.metadata.uid)
            if before.live == record:
                return
            if before.version != observed_version:
                raise Stale(f"the traffic is at version {before.version}, not {observed_version}")
            if not self._stacks.exists(model.metadata.uid, record.stack):
                raise Stale(f"stack {record.stack} does not exist any more")
            if before.live and before.live.stack == record.stack:
                relabelled = dataclasses.replace(before, live=record, version=str(int(before.version) + 1))
                self._change({**self._now, model.metadata.uid: relabelled})
                return
            self.switches.append(record.stack)
            after = TrafficObserved(
                live=record,
                previous=before.live.stack if before.live else "",
                switched_at=now,
                address=f"memory://{model.key}",
                version=str(int(before.version) + 1),
            )
            self._change({**self._now, model.metadata.uid: after})

    async def close(self, model: RetrievalModel) -> None:
        with self._call("close", model.key):
            self._change({uid: traffic for uid, traffic in self._now.items() if uid != model.metadata.uid})

    def _of(self, uid: str) -> TrafficObserved:
        return self._now.get(uid, TrafficObserved(version="0"))


class MemoryStacks(Fake[RunningStacks]):
    """Fills the port Stacks. New stacks become ready at once with `ready_at_once`, else when a test says so."""

    def __init__(self, clock: Clock, *, ready_at_once: bool = False) -> None:
        super().__init__({})
        self._clock = clock
        self.ready_at_once = ready_at_once
        self.live_of: Callable[[str], str] = lambda _uid: ""

    async def observe(self, model: RetrievalModel) -> Mapping[str, StackObserved]:
        with self._call("observe", model.key):
            return {name: stack for (uid, name), stack in self._seen.items() if uid == model.metadata.uid}

    async def create(self, model: RetrievalModel, record: StackRecord, replicas: int, max_replicas: int = 0) -> None:
        with self._call("create", record.stack):
            identity = (model.metadata.uid, record.stack)
            existing = self._now.get(identity)
            if existing is None:
                self.created.append(record.stack)
                existing = StackObserved(
                    record=record,
                    ready_replicas=0,
                    replicas=replicas,
                    max_replicas=max_replicas,
                    address=f"memory://{model.key}/{record.stack}",
                    created_at=self._clock(),
                )
                self._change({**self._now, identity: existing})
                if self.ready_at_once:
                    self._update(identity, ready_replicas=replicas)
            elif existing.failed:
                self._update(identity, failed="", ready_replicas=existing.replicas if self.ready_at_once else 0)

    async def scale(self, model: RetrievalModel, stack: str, replicas: int, max_replicas: int = 0) -> None:
        with self._call("scale", stack):
            identity = (model.metadata.uid, stack)
            existing = self._now.get(identity)
            if existing is None:
                raise Stale(f"stack {stack} does not exist any more")
            ready = replicas if self.ready_at_once else min(existing.ready_replicas, replicas)
            self._update(identity, replicas=replicas, max_replicas=max_replicas, ready_replicas=ready)

    async def delete(self, model: RetrievalModel, stack: str) -> None:
        with self._call("delete", stack):
            identity = (model.metadata.uid, stack)
            if identity in self._now and self.live_of(model.metadata.uid) == stack:
                raise Rejected(f"stack {stack} is live; switch the traffic away first")
            self._change({key: value for key, value in self._now.items() if key != identity})

    def exists(self, uid: str, stack: str) -> bool:
        return (uid, stack) in self._now

    def make_ready(self, stack: str) -> None:
        """All its replicas pass their self-test."""
        identity = self._find(stack)
        self._update(identity, ready_replicas=self._now[identity].replicas, failed="")

    def make_unready(self, stack: str) -> None:
        self._update(self._find(stack), ready_replicas=0)

    def break_down(self, stack: str, message: str = "the server exits") -> None:
        """It cannot become ready by itself any more."""
        self._update(self._find(stack), ready_replicas=0, failed=message)

    def vanish(self, stack: str) -> None:
        """Somebody removes it behind our back, live or not."""
        identity = self._find(stack)
        self._change({key: value for key, value in self._now.items() if key != identity})

    def _find(self, stack: str) -> tuple[str, str]:
        return next(identity for identity in self._now if identity[1] == stack)

    def _update(self, identity: tuple[str, str], **fields: Any) -> None:
        self._change({**self._now, identity: dataclasses.replace(self._now[identity], **fields)})

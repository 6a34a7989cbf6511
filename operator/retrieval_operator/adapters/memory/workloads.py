"""Workloads in memory: they run until a test ends them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retrieval_operator.adapters.memory.faults import Clock, Fake
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec

# (owner's uid, name)
Attempts = Mapping[tuple[str, str], WorkloadObserved]


class MemoryWorkloads(Fake[Attempts]):
    """Fills the port Workloads. `specs` keeps what was asked for, by name, deleted ones included."""

    def __init__(self, clock: Clock) -> None:
        super().__init__({})
        self._clock = clock
        self.specs: dict[str, WorkloadSpec] = {}

    async def observe(self, model: RetrievalModel) -> Sequence[WorkloadObserved]:
        with self._call("observe", model.key):
            return [attempt for (uid, _), attempt in sorted(self._seen.items()) if uid == model.metadata.uid]

    async def start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        with self._call("start", workload.name):
            identity = (model.metadata.uid, workload.name)
            if identity in self._now:
                return
            self.created.append(workload.name)
            self.specs[workload.name] = workload
            started = WorkloadObserved(
                name=workload.name,
                step=workload.step,
                key=workload.key,
                attempt=workload.attempt,
                state="Running",
                started_at=self._clock(),
            )
            self._change({**self._now, identity: started})

    async def stop(self, model: RetrievalModel, name: str) -> None:
        with self._call("stop", name):
            attempt = self._now.get((model.metadata.uid, name))
            if attempt and attempt.state == "Running":
                self._end((model.metadata.uid, name), state="Failed", reason="Stopped")

    async def delete(self, model: RetrievalModel, name: str) -> None:
        with self._call("delete", name):
            self._change({key: attempt for key, attempt in self._now.items() if key != (model.metadata.uid, name)})

    def running(self) -> list[str]:
        return sorted(name for (_, name), attempt in self._now.items() if attempt.state == "Running")

    def finish(self, name: str, exit_code: int = 0, *, reason: str = "", message: str = "") -> None:
        """The program ends."""
        state = "Succeeded" if exit_code == 0 else "Failed"
        self._end(self._find(name), state=state, exit_code=exit_code, reason=reason, message=message)

    def lose(self, name: str) -> None:
        """The process vanishes without a trace; its record says so."""
        self._end(self._find(name), state="Failed", reason="Lost", message="the process is gone")

    def vanish(self, name: str) -> None:
        """Even the record vanishes, as when somebody deletes a Job."""
        identity = self._find(name)
        self._change({key: attempt for key, attempt in self._now.items() if key != identity})

    def _find(self, name: str) -> tuple[str, str]:
        return next(identity for identity in self._now if identity[1] == name)

    def _end(self, identity: tuple[str, str], **fields: Any) -> None:
        ended = dataclasses.replace(self._now[identity], finished_at=self._clock(), **fields)
        self._change({**self._now, identity: ended})

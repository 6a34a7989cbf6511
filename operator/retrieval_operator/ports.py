"""The four outside systems the control plane talks to, as Protocols. Domain types go in and come out.

Two adapters each (Kubernetes, this machine), one contract-test suite run against both, and a tested in-memory fake
(adapters/memory). Errors are ours: an adapter translates whatever its library raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord
from retrieval_operator.domain.observed import Problem, RegistryObserved, RunStatus, StackObserved, TrafficObserved
from retrieval_operator.domain.plan import EmitEvent, EnsureRun, RegisterVersion
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec


class PortError(Exception):
    """Base of what adapters raise; `message` is a sentence for a person."""


class Retryable(PortError):
    """Not now: unreachable, busy, conflicting. The same call may succeed later."""


class Stale(Retryable):
    """The caller's view was old (a version or UID precondition failed). Observe again."""


class Rejected(PortError):
    """Never like this: the other side refused the request itself. A person must change something."""


class Gone(PortError):
    """The object or parent no longer exists (or is being deleted). Nothing to do."""


class ModelStore(Protocol):
    """The RetrievalModel objects, their status and events. Nothing here ever writes a spec."""

    async def keys(self) -> Sequence[str]:
        """`namespace/name` of every object, those being deleted included."""

    async def get(self, key: str) -> RetrievalModel | None:
        """The object as last seen, None when it does not exist."""

    async def write_status(self, model: RetrievalModel, status: RetrievalModelStatus) -> None:
        """Replace the status. Raises Stale when the object was replaced (other UID), Gone when it vanished."""

    async def emit(self, model: RetrievalModel, event: EmitEvent, now: int) -> None:
        """Tell people. The same (reason, message) again only raises a count."""

    async def set_finalizer(self, model: RetrievalModel, present: bool) -> None: ...


class Workloads(Protocol):
    """Training, index build, evaluation, verification, removal of files: programs that run to their end."""

    async def observe(self, model: RetrievalModel) -> Sequence[WorkloadObserved]:
        """Every attempt of this object that still has a record, finished ones included."""

    async def start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        """Start it once: a second call with the same name does nothing, whatever has become of the first.

        Only `delete` frees a name.
        """

    async def stop(self, model: RetrievalModel, name: str) -> None:
        """Stop it (its record stays and says Failed unless it had ended). Unknown names are fine."""

    async def delete(self, model: RetrievalModel, name: str) -> None:
        """Stop it and remove its record. Unknown names are fine."""


class Stacks(Protocol):
    """Servers, one group per stack, immutable but for their number.

    That is `replicas`; with an autoscaler (`max_replicas` > 0) at least `replicas` and at most `max_replicas`. Where
    there is no autoscaler, `max_replicas` is ignored.
    """

    async def observe(self, model: RetrievalModel) -> Mapping[str, StackObserved]:
        """Every stack of this object by its id. Raises Rejected when what is recorded about one cannot be read."""

    async def create(self, model: RetrievalModel, record: StackRecord, replicas: int, max_replicas: int = 0) -> None:
        """Start the stack once: a second call with the same stack id does nothing but repair what died."""

    async def scale(self, model: RetrievalModel, stack: str, replicas: int, max_replicas: int = 0) -> None:
        """More or fewer servers of a stack. Raises Stale for an unknown one."""

    async def delete(self, model: RetrievalModel, stack: str) -> None:
        """Drain, then remove. Unknown stacks are fine. Raises Rejected while the traffic points at it."""


class Traffic(Protocol):
    """One stable address. A switch affects new connections; old ones end within the connection age."""

    async def observe(self, model: RetrievalModel) -> TrafficObserved:
        """Where new connections go. Raises Rejected when that cannot be read: a champion is never guessed."""

    async def switch(self, model: RetrievalModel, record: StackRecord, observed_version: str, now: int) -> None:
        """Point new connections at the stack. Raises Stale on another version, or when the stack does not exist.

        The same record again: nothing. The same stack under another record (a retraining that gave the same bundle and
        index): the record is replaced; since when the stack is live, and which was before it, stay.
        """

    async def close(self, model: RetrievalModel) -> None:
        """The object goes away: release its address."""


class Registry(Protocol):
    """MLflow, the record for people. Everything is found by tag before it is created."""

    async def observe(self, model: RetrievalModel) -> RegistryObserved:
        """Runs with reports, versions and aliases of this owner. Raises Retryable when MLflow is not reachable."""

    async def ensure_run(self, model: RetrievalModel, run: EnsureRun) -> None: ...

    async def tag_run(self, model: RetrievalModel, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags. With TAG_REPORT "" the run has no report any more, until its program reports again."""

    async def set_run_status(self, model: RetrievalModel, run_id: str, status: RunStatus) -> None: ...

    async def register_version(self, model: RetrievalModel, version: RegisterVersion) -> None: ...

    async def describe_version(
        self, model: RetrievalModel, version: str, tags: Mapping[str, str], description: str | None
    ) -> None: ...

    async def set_alias(self, model: RetrievalModel, alias: str, version: str) -> None: ...

    def forget(self, key: str) -> None:
        """The object `namespace/name` is gone: what is remembered of it here takes memory for nothing."""


class Surroundings(Protocol):
    """What must exist before work can succeed: CRDs, claims, secrets, quota. On one machine: programs and disk."""

    async def problems(self, model: RetrievalModel) -> Sequence[Problem]: ...

    async def storage_id(self, model: RetrievalModel) -> str:
        """Of the storage behind spec.storage: another id when it was replaced. "" when that cannot be told."""
        ...

"""All fakes together, as one world with one clock."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_operator.adapters.memory.faults import Clock, Fake
from retrieval_operator.adapters.memory.models import MemoryModelStore
from retrieval_operator.adapters.memory.registry import MemoryRegistry
from retrieval_operator.adapters.memory.serving import MemoryStacks, MemoryTraffic
from retrieval_operator.adapters.memory.workloads import MemoryWorkloads
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.observed import Problem


class MemorySurroundings(Fake[tuple[Problem, ...]]):
    """Fills the port Surroundings. Everything is in order until a test says otherwise."""

    def __init__(self) -> None:
        super().__init__(())
        self.storage = ""

    async def problems(self, model: RetrievalModel) -> Sequence[Problem]:
        with self._call("problems", model.key):
            return self._seen

    async def storage_id(self, model: RetrievalModel) -> str:
        with self._call("storage_id", model.key):
            return self.storage

    def report(self, *problems: Problem) -> None:
        """From now on exactly these; none means that all is well again."""
        self._change(problems)


class MemoryWorld:
    """`clock` gives seconds since the epoch. `ready_at_once`: stacks need nobody to make them ready."""

    def __init__(self, clock: Clock, *, ready_at_once: bool = False) -> None:
        self.models = MemoryModelStore()
        self.workloads = MemoryWorkloads(clock)
        self.stacks = MemoryStacks(clock, ready_at_once=ready_at_once)
        self.traffic = MemoryTraffic(self.stacks)
        self.registry = MemoryRegistry()
        self.surroundings = MemorySurroundings()

    @property
    def created(self) -> list[str]:
        """All that was brought into being, by kind and name."""
        kinds = {"workload": self.workloads.created, "stack": self.stacks.created, "": self.registry.created}
        return [f"{kind} {name}".strip() for kind, names in kinds.items() for name in names]

    def set_lag(self, changes: int) -> None:
        """Every observation (but not the objects themselves) shows the state of so many changes ago."""
        for fake in (self.workloads, self.stacks, self.traffic, self.registry):
            fake.lag = changes

"""A loop whose clock jumps, the log of a test, ports that record every call, decisions by a script, and a process."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from io import StringIO
from typing import Any, TypeVar

import pytest
import structlog
from controller_examples import NOW, RECORD, WORKLOAD
from kubernetes_world import KubernetesWorld
from mode_process import MODEL, Process

from retrieval_operator import kubernetes_mode
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord
from retrieval_operator.controller import Controller
from retrieval_operator.domain.observed import Observed, RegistryObserved, TrafficObserved
from retrieval_operator.domain.plan import Action, Plan
from retrieval_operator.domain.workloads import WorkloadSpec
from retrieval_operator.perform import Ports
from retrieval_operator.telemetry import configure_logging

T = TypeVar("T")


class JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("every task waits for something that nobody will do")
        if not events:
            self.now += timeout or 0.0
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


@pytest.fixture(scope="session")
def in_virtual_time() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine to its end on a loop of its own; `loop.time()` starts at 0."""

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """What is logged meanwhile, one JSON document per line."""
    stream = StringIO()
    configure_logging("json", "debug", stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def record() -> StackRecord:
    return RECORD


@pytest.fixture
def workload() -> WorkloadSpec:
    return WORKLOAD


@pytest.fixture(scope="session")
def a_model() -> Callable[..., RetrievalModel]:
    """a_model("2") is the plain manifest at another data revision; keyword arguments are metadata."""

    def build(revision: str = "1", **metadata: Any) -> RetrievalModel:
        return parse_manifest(
            {
                "apiVersion": "retrieval-operator.io/v1alpha1",
                "kind": "RetrievalModel",
                "metadata": {"name": "feed", "uid": "u-1", **metadata},
                "spec": {
                    "storage": {"uri": "/storage"},
                    "data": {"uri": "/data", "revision": revision},
                    "model": {"base": "preset:tiny"},
                    "promotion": {"gates": [{"min": "0.1"}]},
                },
            },
            "test",
        )

    return build


OBSERVE = {
    *("workloads.observe", "stacks.observe", "traffic.observe", "registry.observe"),
    *("surroundings.problems", "surroundings.storage_id"),
}


class RecordedWorld:
    """Ports whose every call is recorded as (port.method, *arguments without the model), and may be made to fail.

    Its controllers follow a script instead of deciding; `seen` is what they would have decided on.
    """

    READS = frozenset({"models.get", *OBSERVE})

    def __init__(self, model: RetrievalModel | None) -> None:
        self.model = model
        self.now = NOW
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, BaseException] = {}
        self.seen: list[tuple[RetrievalModel, Observed, int]] = []
        self.during: dict[str, Callable[[], Any]] = {}
        self.answers: dict[str, Any] = {
            "workloads.observe": (),
            "stacks.observe": {},
            "traffic.observe": TrafficObserved(),
            "registry.observe": RegistryObserved(page="http://mlflow"),
            "surroundings.problems": (),
            "surroundings.storage_id": "",
        }

    def ports(self) -> Ports:
        names = ("models", "workloads", "stacks", "traffic", "registry", "surroundings")
        return Ports(**{name: Recorder(self, name) for name in names})  # type: ignore[arg-type]

    @property
    def writes(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] not in self.READS]

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append((name, *(a for a in arguments if not isinstance(a, RetrievalModel))))
        await asyncio.sleep(0)
        if name in self.during:
            await self.during[name]()
        if name in self.failures:
            raise self.failures[name]
        if name == "models.get":
            return self.model
        if name == "models.write_status":
            self.model = arguments[0].model_copy(update={"status": arguments[1]})
        return self.answers.get(name)

    def controller(self, *plans: Plan, **options: Any) -> Controller:
        """Returns the plans in order, the last one for ever."""
        script = list(plans)

        def follow(model: RetrievalModel, observed: Observed, now: int) -> Plan:
            self.seen.append((model, observed, now))
            return script.pop(0) if len(script) > 1 else script[0]

        return Controller(self.ports(), follow, lambda: self.now, **options)


class Recorder:
    def __init__(self, world: RecordedWorld, name: str) -> None:
        self._world, self._name = world, name

    def forget(self, key: str) -> None:  # the one call that waits for nobody
        self._world.calls.append((f"{self._name}.forget", key))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: self._world.call(f"{self._name}.{method}", arguments)


@pytest.fixture
def world(a_model: Callable[..., RetrievalModel]) -> RecordedWorld:
    return RecordedWorld(a_model())


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    monkeypatch.setattr(kubernetes_mode, "_RETRY_S", 0)
    world = KubernetesWorld(lambda: NOW)
    world.put(MODEL)
    return Process(world)


@pytest.fixture(scope="session")
def a_plan() -> Callable[..., Plan]:
    """a_plan(action, ..., status=..., requeue=seconds)"""

    def build(*actions: Action, status: RetrievalModelStatus | None = None, requeue: float | None = None) -> Plan:
        return Plan(actions=actions, status=status or RetrievalModelStatus(), requeue_after_s=requeue)

    return build

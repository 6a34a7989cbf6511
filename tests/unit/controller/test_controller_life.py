"""Whole lives: the real controller and the real decisions over the fakes, undisturbed and then disturbed everywhere.

The undisturbed life is the reference. A life that is killed at any action boundary, that meets any error at any call or
that sees the past must end in the same world, with nothing created twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from retrieval_operator.adapters.memory import Fake, MemoryWorld
from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.controller import Controller, OnAction
from retrieval_operator.domain.champion import BAKE_GRACE_S
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import Action, EmitEvent
from retrieval_operator.domain.simulate import passing_report
from retrieval_operator.perform import Ports
from retrieval_operator.ports import Retryable
from retrieval_operator.work_queue import Backoff, WorkQueue

KEY = "default/feed"
PATIENCE = 300  # passes; an undisturbed life takes about 40
WRITES = {
    *("write_status", "emit", "set_finalizer", "start", "stop", "delete", "create", "scale", "switch", "close"),
    *("ensure_run", "tag_run", "set_run_status", "register_version", "describe_version", "set_alias"),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def manifest(revision: str = "1", **spec: Any) -> RetrievalModel:
    document = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed"},
        "spec": {
            "storage": {"uri": "/storage"},
            "data": {"uri": f"/data/{revision}", "revision": revision},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
            **spec,
        },
    }
    return parse_manifest(document, "test")


@dataclass
class Life:
    """One world and the control planes that come and go in it. Programs end well between two passes."""

    world: MemoryWorld = field(init=False)
    now: int = 1_700_000_000
    boundaries: int = 0
    kill_at: int = -1
    kill_always: bool = False  # right after every action but events, which are repeated when they come first
    programs_end: bool = True

    def __post_init__(self) -> None:
        self.world = MemoryWorld(lambda: self.now, ready_at_once=True)
        self.apply(manifest())
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        world = self.world
        ports = Ports(
            models=world.models,
            workloads=world.workloads,
            stacks=world.stacks,
            traffic=world.traffic,
            registry=world.registry,
            surroundings=world.surroundings,
        )
        on_action: OnAction = self._boundary
        return Controller(ports, decide, lambda: self.now, on_action=on_action)

    def _boundary(self, moment: Literal["before", "after"], action: Action) -> None:
        self.boundaries += 1
        every_time = self.kill_always and moment == "after" and not isinstance(action, EmitEvent)
        if self.boundaries == self.kill_at or every_time:
            raise Killed

    def apply(self, model: RetrievalModel) -> None:
        self.world.models.apply(model, now=self.now)

    @property
    def model(self) -> RetrievalModel:
        return self.world.models._now[KEY]

    def live(self) -> str:
        return self.world.stacks.live_of(self.model.metadata.uid)

    def until_settled(self) -> None:
        """Passes, and a second between them, until one is settled with nothing in flight and nothing missing."""
        asyncio.run(self._until_settled())

    async def _until_settled(self) -> None:
        for _ in range(PATIENCE):
            try:
                result = await self.controller.reconcile(KEY)
            except Killed:
                self.controller = self.new_controller()
                await self._end_programs()
                continue
            assert result.outcome != "crashed"
            if self.programs_end:
                await self._end_programs()
            model = self.world.models._now.get(KEY)
            if model is None or (result.outcome == "settled" and not _waits(model)):
                return
            self.now += 1
        raise AssertionError(f"not settled after {PATIENCE} passes")

    async def _end_programs(self) -> None:
        for name in self.world.workloads.running():
            spec = self.world.workloads.specs[name]
            self.world.registry.attach_report(self.model, spec.step, spec.key, passing_report(spec))
            self.world.workloads.finish(name)

    def writes(self) -> list[tuple[str, str]]:
        fakes: list[Fake[Any]] = [
            self.world.models,
            self.world.workloads,
            self.world.stacks,
            self.world.traffic,
            self.world.registry,
        ]
        return [call for fake in fakes for call in fake.calls if call[0] in WRITES]


def _waits(model: RetrievalModel) -> bool:
    missing = any(c.type is ConditionType.DEPENDENCIES_READY and c.status != "True" for c in model.status.conditions)
    return missing or model.status.candidate is not None


@pytest.fixture(scope="module")
def undisturbed() -> Life:
    life = Life()
    life.until_settled()
    return life


def assert_same_end(life: Life, undisturbed: Life) -> None:
    assert life.live() == undisturbed.live() != ""
    assert sorted(life.world.created) == sorted(undisturbed.world.created)
    assert life.world.traffic.switches == undisturbed.world.traffic.switches
    assert life.model.status.phase == undisturbed.model.status.phase == "Live"


def test_a_first_life_ends_with_a_champion(undisturbed: Life) -> None:
    assert len(undisturbed.world.created) == len(set(undisturbed.world.created))
    assert len(undisturbed.world.workloads.created) == 5, "train, evaluation index, evaluation, serving index, verify"
    assert undisturbed.world.traffic.switches == [undisturbed.live()]


def test_a_settled_object_costs_no_write(undisturbed: Life) -> None:
    before = undisturbed.writes()
    for _ in range(3):
        undisturbed.now += 60
        assert asyncio.run(undisturbed.controller.reconcile(KEY)).outcome == "settled"
    assert undisturbed.writes() == before


def test_a_control_plane_killed_at_any_action_boundary_is_followed_by_one_that_finishes(undisturbed: Life) -> None:
    assert undisturbed.boundaries > 40, "before and after each action of a life"
    for boundary in range(1, undisturbed.boundaries + 1):
        life = Life(kill_at=boundary)
        life.until_settled()
        assert life.boundaries >= boundary, "it was really killed"
        assert_same_end(life, undisturbed)


def test_control_planes_that_are_each_killed_after_one_action_finish_together(undisturbed: Life) -> None:
    life = Life(kill_always=True)
    life.until_settled()
    assert_same_end(life, undisturbed)


def test_a_promotion_is_recorded_although_no_status_was_written_on_the_way(undisturbed: Life) -> None:
    life = Life(kill_always=True)
    life.until_settled()
    outcomes = [[entry.outcome for entry in some.model.status.history] for some in (life, undisturbed)]
    assert outcomes[0] == outcomes[1] == ["Promoted"]


CALLS = [
    *((port, "observe") for port in ("workloads", "stacks", "traffic", "registry")),
    *(("models", method) for method in ("get", "write_status", "emit")),
    *(("registry", method) for method in ("ensure_run", "register_version", "describe_version", "set_alias")),
    *(("workloads", "start"), ("stacks", "create"), ("traffic", "switch"), ("surroundings", "problems")),
]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("port", "method"), CALLS)
def test_a_call_that_fails_or_whose_answer_is_lost_changes_nothing_in_the_end(
    undisturbed: Life, port: str, method: str, moment: Literal["before", "after"]
) -> None:
    life = Life()
    fake: Fake[Any] = getattr(life.world, port)
    fake.fail(method, Retryable("a test wants it"), times=3 if moment == "before" else 1, moment=moment)
    life.until_settled()
    assert fake._faults == [], "every fault was met"
    assert_same_end(life, undisturbed)


@pytest.mark.parametrize("changes", [1, 2, 3])
def test_observations_of_the_past_create_nothing_twice(undisturbed: Life, changes: int) -> None:
    life = Life()
    life.world.set_lag(changes)
    for _ in range(40):
        asyncio.run(life.controller.reconcile(KEY))
        asyncio.run(life._end_programs())
        life.now += 1
    life.world.set_lag(0)
    life.until_settled()
    assert_same_end(life, undisturbed)


def test_a_second_revision_takes_over(undisturbed: Life) -> None:
    life = Life()
    life.until_settled()
    first = life.live()
    life.apply(manifest("2"))
    life.until_settled()
    assert life.world.traffic.switches == [first, life.live()]
    assert first != life.live()


def test_while_mlflow_is_away_the_champion_is_repaired_and_a_new_revision_waits() -> None:
    life = Life()
    life.until_settled()
    champion, started = life.live(), list(life.world.workloads.created)
    life.world.registry.fail("observe", times=1000)
    life.world.stacks.vanish(champion)
    life.apply(manifest("2"))
    for _ in range(20):
        asyncio.run(life.controller.reconcile(KEY))
        life.now += 1
    assert champion in asyncio.run(life.world.stacks.observe(life.model)), "repaired without MLflow"
    assert life.world.workloads.created == started, "nothing is started that could not report"
    life.world.registry._faults.clear()
    life.until_settled()
    assert life.live() not in ("", champion)


def test_a_bad_champion_is_rolled_back_in_its_time_although_mlflow_refuses_every_write(in_virtual_time: Any) -> None:
    life = Life()
    life.until_settled()
    former = life.live()
    life.apply(manifest("2"))
    life.until_settled()
    bad, began_at = life.live(), life.now
    life.world.registry.move_alias(life.model, "champion", "1")
    life.world.registry.fail("set_alias", Retryable("MLflow is read-only"), times=10_000)

    async def story() -> float:
        loop = asyncio.get_running_loop()
        queue = WorkQueue(backoff=Backoff(jitter=0))

        async def clock() -> None:
            while True:
                life.now = began_at + int(loop.time())
                await asyncio.sleep(1)

        ticking = asyncio.create_task(clock())
        queue.add(KEY)
        work = asyncio.create_task(life.controller.work(queue, workers=1))
        await asyncio.sleep(600)
        assert queue.failures(KEY) > 8, "by now two minutes are between its passes"
        life.world.stacks.make_unready(bad)
        queue.add(KEY)  # the watch
        while life.live() == bad:
            await asyncio.sleep(1)
        queue.stop()
        await work
        ticking.cancel()
        return loop.time() - 600

    assert in_virtual_time(story()) <= BAKE_GRACE_S + 10
    assert life.live() == former


def test_a_stable_service_deleted_by_hand_comes_back_and_nothing_else_happens() -> None:
    life = Life()
    life.until_settled()
    champion, created = life.model.status.champion, list(life.world.created)
    asyncio.run(life.world.traffic.close(life.model))
    life.now += 60
    life.until_settled()
    assert champion is not None
    assert life.live() == champion.stack
    assert life.world.created == created
    assert life.model.status.champion == champion
    assert [entry.outcome for entry in life.model.status.history] == ["Promoted"]


def test_a_wiped_status_neither_trains_nor_promotes_again(undisturbed: Life) -> None:
    life = Life()
    life.until_settled()
    created = list(life.world.created)
    life.world.models.wipe_status(KEY)
    life.controller = life.new_controller()
    life.until_settled()
    assert life.world.created == created
    assert_same_end(life, undisturbed)


def test_deleting_the_object_ends_its_servers_and_workloads() -> None:
    life = Life()
    life.until_settled()
    asyncio.run(life.world.models.set_finalizer(life.model, True))
    live = life.live()
    assert live
    life.world.models.request_deletion(KEY, now=life.now)
    life.until_settled()
    assert KEY not in life.world.models._now
    assert not life.world.stacks.exists("uid-1", live)
    assert life.world.workloads.running() == []

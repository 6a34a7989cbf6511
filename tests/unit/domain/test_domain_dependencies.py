"""What is missing in the surroundings holds new work back, and nothing that keeps the champion alive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, Step
from retrieval_operator.domain.observed import Observed, Problem
from retrieval_operator.domain.plan import CreateStack, StartWorkload
from retrieval_operator.domain.simulate import World, run_until_settled

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

MISSING = Problem(dependency="program", message="retrieval-train cannot start: torch not installed")
SECOND = {"spec.data.revision": "2"}


class Surrounded(World):
    """A world with problems."""

    problems: tuple[Problem, ...] = ()

    def observe(self) -> Observed:
        return replace(super().observe(), problems=self.problems)


def in_trouble(world: Surrounded, *problems: Problem) -> None:
    world.problems = problems or (MISSING,)


def test_what_is_wanted_does_not_begin_and_says_why_until_it_is_mended(make: Make, step: Call, condition: Call) -> None:
    world = Surrounded()
    in_trouble(world)
    model = make()
    for _ in range(3):
        model, plan = step(model, world)
    assert (plan.actions, plan.status.candidate) == ((), None)
    assert condition(plan.status, ConditionType.DEPENDENCIES_READY) == ("False", "DependencyMissing")
    assert condition(plan.status, ConditionType.PROMOTED) == ("False", "DependencyMissing")
    assert "torch not installed" in plan.why
    assert plan.requeue_after_s, "nobody tells us when it is there"
    world.problems = ()
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"


@pytest.mark.parametrize("at", [Step.EVALUATING, Step.INDEXING_SERVING, Step.DEPLOYING])
def test_a_candidate_in_flight_starts_nothing_more_and_loses_no_time(
    make: Make, step: Call, until: Call, at: Step
) -> None:
    world = Surrounded()
    model = until(make(), world, at)
    before = list(world.created)
    in_trouble(world)
    for _ in range(4):
        model, plan = step(model, world, seconds=3000)
        assert not [a for a in plan.actions if isinstance(a, StartWorkload | CreateStack)]
    started = [name for name in world.created[len(before) :] if not name.startswith("run ")]
    assert started == []
    assert "torch not installed" in plan.status.candidate.message
    world.problems = ()
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"
    assert all(spec.attempt == 1 for spec in world.specs.values()), "held back is not failed"


def test_the_champion_is_repaired_all_the_same(make: Make, live: Call, step: Call) -> None:
    world = Surrounded()
    status: RetrievalModelStatus = live(world)
    in_trouble(world)
    world.stacks.clear()
    step(make(status=status), world)
    assert list(world.stacks) == [status.champion.stack]  # type: ignore[union-attr]


@pytest.mark.parametrize("collected", [False, True], ids=["running", "collected"])
def test_a_rollback_goes_on_all_the_same(make: Make, second_life: Call, collected: bool) -> None:
    world = Surrounded()
    model = second_life(world)
    older = world.traffic.previous
    if collected:
        world.stacks.pop(older)
    in_trouble(world)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    run_until_settled(make(SECOND, status=model.status, generation=2, annotations=asked), world)
    assert world.traffic.live is not None and world.traffic.live.stack == older


@pytest.mark.parametrize(
    "problem",
    [
        Problem(dependency="secret", message="TOKEN refers to a Secret", holds_back=False),
        Problem(dependency="registry", message="MLflow is away"),
    ],
    ids=lambda problem: problem.dependency,
)
def test_what_work_may_do_without_is_told_and_holds_nothing_back(make: Make, condition: Call, problem: Problem) -> None:
    world = Surrounded()
    in_trouble(world, problem)
    final = run_until_settled(make(), world)[-1][1]
    assert final.status.phase == "Live"
    assert condition(final.status, ConditionType.DEPENDENCIES_READY)[0] == "False"

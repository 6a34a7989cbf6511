"""Schedules that cannot be read are left out, and nothing else is: people are told, and all other work goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulate import World, run_until_settled, with_status

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

PROBLEM = "spec.data.timeZone: found 'Europe/Atlantis', expected an IANA name"


def without_schedules(model: RetrievalModel) -> RetrievalModel:
    return model.model_copy(update={"left_out": (PROBLEM,)})


def message(model: RetrievalModel) -> str:
    return next(one.message for one in model.status.conditions if one.type is ConditionType.STALLED)


def test_it_is_told_and_everything_else_goes_on(make: Make, condition: Call) -> None:
    world = World()
    model = without_schedules(make())
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert world.traffic.live is not None, "it was trained and promoted"
    assert condition(model.status, ConditionType.STALLED) == ("True", "InvalidSpec")
    assert message(model) == f"no schedule runs until it is corrected, everything else goes on: {PROBLEM}"
    assert condition(model.status, ConditionType.READY)[0] == "True"
    assert condition(model.status, ConditionType.PROMOTED)[0] == "True"
    assert model.status.phase == "Stalled"


def test_stalled_is_never_beside_reconciling(make: Make, condition: Call) -> None:
    world = World()
    status = decide(without_schedules(make()), world.observe(), world.now).status
    assert status.candidate is not None
    assert condition(status, ConditionType.STALLED)[0] == "True"
    assert condition(status, ConditionType.RECONCILING)[0] == "absent"


def test_another_reason_to_be_stalled_comes_first_and_is_not_denied(make: Make, live: Call, condition: Call) -> None:
    world = World()
    changed = without_schedules(make({"spec.storage.uri": "/elsewhere"}, status=live(world), generation=2))
    model = with_status(changed, decide(changed, world.observe(), world.now).status)
    assert condition(model.status, ConditionType.STALLED) == ("True", "ImmutableFieldChanged")
    assert "/elsewhere" in message(model) and PROBLEM in message(model)
    assert "goes on" not in message(model)


def test_a_settled_object_writes_nothing_new(make: Make) -> None:
    world = World()
    model = without_schedules(make())
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    world.now += 100_000
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    plan = decide(model, world.observe(), world.now)
    assert plan.status.document() == model.status.document()

"""The condition Promoted: this generation of the object has its stack as champion. Schedules do not take that away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.simulate import World, run_until_settled, with_status

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

NOW = 1_700_000_000  # 22:13:20 UTC; the schedules below are due at 23:00
BORN = {"metadata.creationTimestamp": NOW}
REFRESH = BORN | {"spec.index.refresh": {"schedule": "0 23 * * *"}}
RETRAIN = BORN | {"spec.data.schedule": "0 23 * * *"}
RETRAIN_ANNOTATION = {"retrieval-operator.io/retrain": "1"}


@pytest.mark.parametrize(
    ("before", "change", "annotations", "promoted", "work"),
    [
        pytest.param(REFRESH, {}, {}, "True", ConditionType.PROGRESSING, id="a scheduled refresh"),
        pytest.param(RETRAIN, {}, {}, "True", ConditionType.PROGRESSING, id="a scheduled retraining"),
        pytest.param(BORN, {"spec.data.revision": "2"}, {}, "False", ConditionType.RECONCILING, id="new data"),
        pytest.param(
            BORN,
            {"spec.index.refresh": {"revision": "x"}},
            {},
            "False",
            ConditionType.RECONCILING,
            id="asked-for refresh",
        ),
        pytest.param(BORN, {"spec.serving.image": "s:2"}, {}, "False", ConditionType.RECONCILING, id="another server"),
        pytest.param(BORN, {}, RETRAIN_ANNOTATION, "False", ConditionType.RECONCILING, id="a retraining asked for"),
        pytest.param(BORN, {"spec.serving.replicas": {"min": 2}}, {}, "True", None, id="a change in place"),
    ],
)
def test_what_is_under_way_decides_between_promoted_progressing_and_reconciling(
    make: Make,
    step: Call,
    condition: Call,
    before: dict[str, Any],
    change: dict[str, Any],
    annotations: dict[str, str],
    promoted: str,
    work: ConditionType | None,
) -> None:
    world = World(now=NOW)
    status = run_until_settled(make(before), world)[-1][1].status
    world.now += 3600
    _, plan = step(make(before | change, status=status, annotations=annotations, generation=2), world)
    assert condition(plan.status, ConditionType.PROMOTED)[0] == promoted
    shown = {kind for kind in (ConditionType.PROGRESSING, ConditionType.RECONCILING) if _is_present(plan.status, kind)}
    assert shown == ({work} if work else set())


def _is_present(status: Any, kind: ConditionType) -> bool:
    return any(found.type is kind for found in status.conditions)


def test_a_scheduled_retraining_that_is_refused_leaves_what_was_promoted_promoted(
    make: Make, condition: Call, worse: Any
) -> None:
    world = World(now=NOW, outcomes=worse)
    model = make(RETRAIN)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    world.now += 3600
    final = run_until_settled(model, world)[-1][1].status
    assert final.history[0].outcome == "Rejected"
    assert condition(final, ConditionType.PROMOTED) == ("True", "Promoted")


def test_after_a_rollback_this_generation_is_not_promoted(make: Make, second_life: Call, condition: Call) -> None:
    world = World()
    model = second_life(world)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{world.traffic.previous}"}
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    final = run_until_settled(asking, world)[-1][1].status
    assert condition(final, ConditionType.PROMOTED)[0] == "False"

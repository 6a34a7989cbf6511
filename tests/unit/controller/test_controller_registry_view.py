"""The registry is polled only when its view may have become wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.status import Candidate, CandidateKind, RetrievalModelStatus
from retrieval_operator.ports import Retryable

Call = Callable[..., Any]  # a fixture of conftest.py

KEY = "default/feed"
NOW = 1_700_000_000
CANDIDATE = Candidate(
    id="1", kind=CandidateKind.REVISION, revision="1", generation=1, started_at=NOW, step_started_at=NOW
)


async def test_a_settled_objects_registry_view_is_used_until_it_is_too_old(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan(), registry_poll_s=30)
    for seconds, polls in ((0, 1), (10, 1), (29, 1), (30, 2), (31, 2)):
        world.now = NOW + seconds
        await controller.reconcile(KEY)
        assert world.count("registry.observe") == polls, f"after {seconds} s"


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"annotations": {"retrieval-operator.io/retry": "now"}},
        {"uid": "u-2"},
    ],
)
async def test_whatever_people_ask_for_polls_the_registry(
    world: Any, change: dict[str, Any], a_model: Call, a_plan: Call
) -> None:
    controller = world.controller(a_plan())
    await controller.reconcile(KEY)
    world.model = a_model(**change)
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


async def test_a_candidate_in_flight_polls_the_registry_in_every_pass(world: Any, a_plan: Call) -> None:
    status = RetrievalModelStatus(candidate=CANDIDATE)
    controller = world.controller(a_plan(status=status))
    for _ in range(3):
        await controller.reconcile(KEY)
    assert world.count("registry.observe") == 3


async def test_an_unreachable_registry_is_asked_again_in_the_next_pass(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan())
    world.failures["registry.observe"] = Retryable("away")
    await controller.reconcile(KEY)
    del world.failures["registry.observe"]
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2

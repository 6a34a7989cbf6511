"""One pass on its own: what it reads, what it writes, and what it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from prometheus_client import REGISTRY

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.status import Candidate, CandidateKind, RetrievalModelStatus
from retrieval_operator.domain.observed import Observed, Problem, RegistryObserved
from retrieval_operator.domain.plan import EmitEvent, StartWorkload, StopWorkload
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale

Call = Callable[..., Any]  # a fixture of conftest.py

KEY = "default/feed"
NOW = 1_700_000_000
START = StartWorkload(
    workload=WorkloadSpec(
        name="feed-1-train-1", step=WorkloadStep.TRAIN, key="1", attempt=1, program="retrieval-train", arguments=()
    )
)
STOP = StopWorkload(name="w")
EVENT = EmitEvent(type="Normal", reason=Reason.PROMOTED, message="yes")
OBSERVE = {
    *("workloads.observe", "stacks.observe", "traffic.observe", "registry.observe"),
    *("surroundings.problems", "surroundings.storage_id"),
}
CANDIDATE = Candidate(
    id="1", kind=CandidateKind.REVISION, revision="1", generation=1, started_at=NOW, step_started_at=NOW
)


async def test_a_settled_object_costs_reads_only(world: Any, a_plan: Call) -> None:
    result = await world.controller(a_plan(requeue=17.0)).reconcile(KEY)
    assert (result.outcome, result.requeue_after_s) == ("settled", 17.0)
    assert world.writes == []
    assert {call[0] for call in world.calls} == world.READS


async def test_decide_sees_everything_the_ports_reported_and_the_time(world: Any, a_plan: Call) -> None:
    problem = Problem(dependency="storage", message="no space")
    world.answers["surroundings.problems"] = (problem,)
    await world.controller(a_plan()).reconcile(KEY)
    (model, observed, now) = world.seen[0]
    assert (model, now) == (world.model, NOW)
    assert observed == Observed(registry=RegistryObserved(page="http://mlflow"), problems=(problem,))


async def test_the_ports_are_observed_concurrently(world: Any, a_plan: Call) -> None:
    """Each observation waits until all five have begun: one after the other would wait for ever.

    The storage comes after them: it is known from what was asked for the problems.
    """
    begun = asyncio.Barrier(5)
    world.during = dict.fromkeys(OBSERVE - {"surroundings.storage_id"}, begun.wait)
    result = await asyncio.wait_for(world.controller(a_plan()).reconcile(KEY), timeout=5)
    assert result.outcome == "settled"


async def test_the_status_is_written_once_after_the_actions_and_only_when_it_changed(world: Any, a_plan: Call) -> None:
    status = RetrievalModelStatus(observed_generation=1, phase="Training")
    controller = world.controller(a_plan(START, status=status), a_plan(status=status))
    await controller.reconcile(KEY)
    assert [call[0] for call in world.writes] == ["workloads.start", "models.write_status"]
    await controller.reconcile(KEY)
    assert world.count("models.write_status") == 1


async def test_an_event_alone_is_no_reason_to_look_again_at_once(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan(EVENT, requeue=30))
    result = await controller.reconcile(KEY)
    assert (result.outcome, result.requeue_after_s) == ("settled", 30)


async def test_the_same_actions_twice_in_a_row_are_backed_off(world: Any, a_plan: Call) -> None:
    """Else a world that does not follow (a stale watch, a hanging process) would make a busy loop."""
    controller = world.controller(a_plan(START), a_plan(START), a_plan(STOP), a_plan(), a_plan(STOP))
    outcomes = [(await controller.reconcile(KEY)).outcome for _ in range(5)]
    assert outcomes == ["acted", "repeated", "acted", "settled", "acted"]


async def test_an_object_that_is_no_more_ends_quietly_and_is_forgotten(world: Any, a_plan: Call) -> None:
    world.model = None
    assert (await world.controller(a_plan()).reconcile(KEY)).outcome == "gone"
    assert world.calls == [("models.get", KEY), ("registry.forget", KEY)]


async def test_an_object_that_goes_in_mid_pass_ends_as_quietly(world: Any, a_plan: Call, log: StringIO) -> None:
    def vanish(*_: Any) -> None:
        world.model = None

    world.failures["workloads.stop"] = Gone("it does not exist")
    controller = world.controller(a_plan(STOP), on_action=vanish)
    assert (await controller.reconcile(KEY)).outcome == "gone"
    assert "warning" not in log.getvalue()


async def test_an_object_that_stays_is_looked_at_again_when_something_it_needs_is_gone(
    world: Any, a_plan: Call
) -> None:
    """Such as its namespace, in which nothing can be made any more: what has to be removed is."""
    world.failures["workloads.stop"] = Gone("its namespace is being deleted")
    assert (await world.controller(a_plan(STOP)).reconcile(KEY)).outcome == "stale"


@pytest.mark.parametrize("port", sorted(OBSERVE - {"registry.observe"}))
async def test_nothing_is_decided_on_half_an_observation(world: Any, port: str, a_plan: Call) -> None:
    world.failures[port] = Retryable("busy")
    assert (await world.controller(a_plan(START)).reconcile(KEY)).outcome == "delayed"
    assert world.seen == []
    assert world.writes == []


@pytest.mark.parametrize("port", ["stacks.observe", "traffic.observe"])
async def test_an_object_whose_children_cannot_be_read_says_so_and_no_longer_claims_to_serve(
    world: Any, port: str, a_plan: Call
) -> None:
    ready = {"status": "True", "reason": Reason.CHAMPION_SERVING, "observed_generation": 1, "last_transition_time": 1}
    before = RetrievalModelStatus(conditions=[Condition(type=ConditionType.READY, **ready)])
    world.model = world.model.model_copy(update={"status": before})
    world.failures[port] = Rejected("Service default/feed: annotation record is damaged; restore it")
    controller = world.controller(a_plan(START))
    for _ in range(3):
        assert (await controller.reconcile(KEY)).outcome == "refused"
    assert [call[0] for call in world.writes] == ["models.write_status", "models.emit"], "once"
    said = {one.type: (one.status, one.reason, one.last_transition_time) for one in world.model.status.conditions}
    assert said == {
        ConditionType.READY: ("Unknown", Reason.UNREADABLE, NOW),
        ConditionType.STALLED: ("True", Reason.UNREADABLE, NOW),
    }
    assert all("annotation record is damaged; restore it" in one.message for one in world.model.status.conditions)
    assert world.model.status.phase == "Stalled"


@pytest.mark.parametrize("error", [Retryable("MLflow is away"), Rejected("wrong password")])
async def test_without_the_registry_the_decision_is_made_and_told_so(
    world: Any, error: PortError, a_plan: Call
) -> None:
    world.failures["registry.observe"] = error
    assert (await world.controller(a_plan(START)).reconcile(KEY)).outcome == "acted"
    observed = world.seen[0][1]
    assert observed.registry is None
    assert observed.problems == (Problem(dependency="registry", message=str(error)),)


async def test_a_status_that_another_object_would_get_is_not_written(world: Any, a_plan: Call) -> None:
    world.failures["models.write_status"] = Stale("replaced")
    status = RetrievalModelStatus(observed_generation=1)
    assert (await world.controller(a_plan(status=status)).reconcile(KEY)).outcome == "stale"


def test_a_pass_that_hangs_is_cut_and_backed_off(in_virtual_time, world: Any, a_plan: Call) -> None:
    async def story() -> str:
        world.during["workloads.start"] = lambda: asyncio.sleep(10_000)
        controller = world.controller(a_plan(START), pass_deadline_s=60)
        outcome = (await controller.reconcile(KEY)).outcome
        assert asyncio.get_running_loop().time() == pytest.approx(60)
        return outcome

    assert in_virtual_time(story()) == "delayed"


async def test_a_preview_decides_and_performs_nothing(world: Any, a_plan: Call) -> None:
    plan = a_plan(START, status=RetrievalModelStatus(observed_generation=1))
    assert world.model is not None
    _, previewed = await world.controller(plan).preview(world.model)
    assert previewed == plan
    assert world.writes == []


def logged(log: StringIO) -> dict[str, Any]:
    (line,) = log.getvalue().splitlines()
    return json.loads(line)


async def test_a_pass_is_one_log_line_that_says_what_it_was_about(world: Any, log: StringIO, a_plan: Call) -> None:
    status = RetrievalModelStatus(candidate=CANDIDATE.model_copy(update={"stack": "s-1", "revision": "r-1"}))
    await world.controller(a_plan(START, status=status)).reconcile(KEY)
    line = logged(log)
    assert {name: line[name] for name in ("object", "revision", "stack_id", "step", "outcome", "actions", "level")} == {
        "object": KEY,
        "revision": "r-1",
        "stack_id": "s-1",
        "step": "Pending",
        "outcome": "acted",
        "actions": ["StartWorkload"],
        "level": "info",
    }


async def test_a_pass_without_news_is_only_for_debugging(world: Any, log: StringIO, a_plan: Call) -> None:
    await world.controller(a_plan()).reconcile(KEY)
    assert logged(log)["level"] == "debug"


@pytest.mark.parametrize(("error", "has_traceback"), [(Retryable("busy"), False), (ZeroDivisionError("oh"), True)])
async def test_only_a_defect_is_logged_with_its_traceback(
    world: Any, log: StringIO, error: Exception, has_traceback: bool, a_plan: Call
) -> None:
    world.failures["workloads.start"] = error
    await world.controller(a_plan(START)).reconcile(KEY)
    line = logged(log)
    assert (line["level"], line["error"]) == ("warning", str(error))
    assert ("exception" in line) is has_traceback


async def test_passes_actions_and_errors_are_counted(world: Any, a_plan: Call) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    names = [
        ("retrieval_operator_reconcile_total", {"outcome": "delayed"}),
        ("retrieval_operator_reconcile_errors_total", {"kind": "Retryable"}),
        ("retrieval_operator_actions_total", {"action": "StartWorkload"}),
        ("retrieval_operator_reconcile_duration_seconds_count", {}),
    ]
    before = [value(name, **labels) for name, labels in names]
    world.failures["workloads.stop"] = Retryable("busy")
    await world.controller(a_plan(START, STOP)).reconcile(KEY)
    assert [value(name, **labels) for name, labels in names] == [count + 1 for count in before]

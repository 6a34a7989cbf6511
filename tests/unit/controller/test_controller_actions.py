"""Every action becomes its port call; what a port raises stops what has to stop; a pass may die between any two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from controller_examples import NOW, RECORD, WORKLOAD

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain import plan as plans
from retrieval_operator.domain.observed import Problem
from retrieval_operator.domain.plan import Action, EmitEvent
from retrieval_operator.perform import CALLS
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale

Call = Callable[..., Any]  # a fixture of conftest.py

KEY = "default/feed"
# One action of every type, with the port call that performs it.
EVERY_ACTION: list[tuple[Action, tuple[Any, ...]]] = [
    (run := plans.EnsureRun(step="train", key="1", name="train"), ("registry.ensure_run", run)),
    (plans.TagRun(run_id="7", tags={"a": "b"}), ("registry.tag_run", "7", {"a": "b"})),
    (plans.SetRunStatus(run_id="7", status="Failed"), ("registry.set_run_status", "7", "Failed")),
    (
        version := plans.RegisterVersion(bundle_id="b-1", run_id="7", tags={}),
        ("registry.register_version", version),
    ),
    (
        plans.DescribeVersion(version="3", tags={"a": ""}, description="text"),
        ("registry.describe_version", "3", {"a": ""}, "text"),
    ),
    (plans.SetAlias(alias="champion", version="3"), ("registry.set_alias", "champion", "3")),
    (plans.StartWorkload(workload=WORKLOAD), ("workloads.start", WORKLOAD)),
    (plans.StopWorkload(name="w"), ("workloads.stop", "w")),
    (plans.DeleteWorkload(name="w"), ("workloads.delete", "w")),
    (plans.CreateStack(record=RECORD, replicas=2, max_replicas=4), ("stacks.create", RECORD, 2, 4)),
    (plans.ScaleStack(stack="s-1", replicas=3, max_replicas=5), ("stacks.scale", "s-1", 3, 5)),
    (plans.DeleteStack(stack="s-1"), ("stacks.delete", "s-1")),
    (plans.SwitchTraffic(record=RECORD, observed_version="9"), ("traffic.switch", RECORD, "9", NOW)),
    (plans.StopTraffic(), ("traffic.close",)),
    (
        event := EmitEvent(type="Normal", reason=Reason.PROMOTED, message="yes"),
        ("models.emit", event, NOW),
    ),
    (plans.SetFinalizer(present=True), ("models.set_finalizer", True)),
]
START, STOP, ALIAS = EVERY_ACTION[6][0], EVERY_ACTION[7][0], EVERY_ACTION[5][0]


def test_the_table_of_calls_has_a_row_for_every_action() -> None:
    assert set(CALLS) == set(get_args(Action))
    assert {type(action) for action, _ in EVERY_ACTION} == set(CALLS)


async def test_every_action_becomes_its_port_call_in_the_plans_order(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan(*(action for action, _ in EVERY_ACTION)))
    result = await controller.reconcile(KEY)
    assert result.outcome == "acted"
    assert world.writes == [call for _, call in EVERY_ACTION]


@pytest.mark.parametrize(
    ("error", "outcome", "status_written"),
    [
        (Retryable("busy"), "delayed", True),
        (Stale("another uid"), "stale", False),
        (Gone("its namespace is being deleted"), "stale", False),
        (ZeroDivisionError("a defect"), "crashed", False),
    ],
)
async def test_an_action_that_fails_stops_those_after_it(
    world: Any, error: Exception, outcome: str, status_written: bool, a_plan: Call
) -> None:
    world.failures["workloads.start"] = error
    status = RetrievalModelStatus(observed_generation=1)
    result = await world.controller(a_plan(START, STOP, status=status)).reconcile(KEY)
    assert result.outcome == outcome
    assert world.count("workloads.stop") == 0
    assert world.count("models.write_status") == status_written


@pytest.mark.parametrize(
    "action", [action for action, call in EVERY_ACTION if not call[0].startswith(("registry.", "models.emit"))]
)
async def test_a_refusal_stops_only_what_relies_on_it(world: Any, action: Action, a_plan: Call) -> None:
    """A repair that a quota forbids must not keep a mended image from its rollout."""
    calls = {type(one): call[0] for one, call in EVERY_ACTION}
    later = START if action is STOP else STOP
    world.failures = {calls[type(action)]: Rejected("exceeded quota")}
    result = await world.controller(a_plan(action, later)).reconcile(KEY)
    assert result.outcome == "refused"
    relied_on = isinstance(action, plans.SetFinalizer | plans.SwitchTraffic | plans.StopTraffic)
    assert (calls[type(later)] in [call[0] for call in world.writes]) is not relied_on


CREATE, SWITCH, FINALIZER = EVERY_ACTION[9][0], EVERY_ACTION[12][0], EVERY_ACTION[15][0]
TAG = EVERY_ACTION[1][0]


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("traffic.switch", Rejected("a webhook says no")),
        ("traffic.switch", Retryable("a webhook does not answer")),
        ("models.set_finalizer", Rejected("a webhook says no")),
        ("workloads.start", Retryable("a webhook does not answer")),
    ],
)
async def test_what_serves_is_repaired_whatever_else_is_not_to_be_had(
    world: Any, failing: str, error: PortError, a_plan: Call
) -> None:
    world.failures = {failing: error}
    first = next(action for action, call in EVERY_ACTION if call[0] == failing)
    scale = EVERY_ACTION[10][0]
    await world.controller(a_plan(first, TAG, CREATE, scale, STOP)).reconcile(KEY)
    done = [call[0] for call in world.writes if not call[0].startswith("models.")]
    assert [name for name in done if name != failing] == ["stacks.create", "stacks.scale"]


def about(message: str, *, of_action: bool) -> EmitEvent:
    return EmitEvent(type="Normal", reason=Reason.PROMOTED, message=message, of_action=of_action)


@pytest.mark.parametrize("error", [Rejected("a webhook says no"), Retryable("it does not answer")])
async def test_no_event_tells_of_what_was_not_done(world: Any, error: PortError, a_plan: Call) -> None:
    world.failures = {"stacks.delete": error}
    delete = EVERY_ACTION[11][0]
    plan = a_plan(delete, about("removed", of_action=True), CREATE, about("made", of_action=True))
    await world.controller(plan).reconcile(KEY)
    told = [call[1].message for call in world.writes if call[0] == "models.emit" and call[1].type == "Normal"]
    assert told == ["made"]


@pytest.mark.parametrize("error", [Rejected("exceeded quota"), Retryable("a webhook does not answer")])
async def test_an_event_of_what_has_happened_is_told_whatever_failed_before(
    world: Any, error: PortError, a_plan: Call
) -> None:
    """The status that is written records it, so it would never be told later."""
    world.failures = {"stacks.create": error}
    await world.controller(a_plan(CREATE, about("promoted", of_action=False))).reconcile(KEY)
    assert "promoted" in [call[1].message for call in world.writes if call[0] == "models.emit"]


async def test_an_api_server_that_takes_no_event_is_not_asked_to_take_the_next_one(world: Any, a_plan: Call) -> None:
    world.failures = {"models.emit": Retryable("it does not answer")}
    plan = a_plan(about("one", of_action=False), CREATE, about("two", of_action=True), about("three", of_action=False))
    await world.controller(plan).reconcile(KEY)
    assert [call[0] for call in world.writes] == ["models.emit", "stacks.create"]


async def test_what_is_put_off_for_long_is_among_the_problems_and_what_is_put_off_for_a_moment_is_not(
    world: Any, a_plan: Call
) -> None:
    """Such as a webhook that does not answer: nobody refuses anything, and nothing happens."""
    world.failures["stacks.create"] = Retryable("failed calling webhook")
    controller = world.controller(a_plan(CREATE))
    for _ in range(6):
        assert (await controller.reconcile(KEY)).outcome == "delayed"
    world.failures.clear()
    for _ in range(2):
        await controller.reconcile(KEY)
    problem = Problem(dependency="request", message="CreateStack is put off: failed calling webhook", holds_back=False)
    seen = [observed.problems for _, observed, _ in world.seen]
    assert seen == [*[()] * 4, (problem,), (problem,), (problem,), ()]


async def test_a_registry_that_is_away_is_no_request_that_is_put_off(world: Any, a_plan: Call) -> None:
    world.failures["registry.set_alias"] = Retryable("MLflow is away")
    controller = world.controller(a_plan(ALIAS))
    for _ in range(6):
        await controller.reconcile(KEY)
    assert not any(observed.problems for _, observed, _ in world.seen)


async def test_a_refusal_is_among_the_problems_of_the_next_pass_and_no_longer(world: Any, a_plan: Call) -> None:
    world.failures["stacks.create"] = Rejected("exceeded quota")
    create = next(action for action, call in EVERY_ACTION if call[0] == "stacks.create")
    controller = world.controller(a_plan(create), a_plan(create), a_plan(), a_plan())
    assert (await controller.reconcile(KEY)).outcome == "refused"
    assert (await controller.reconcile(KEY)).outcome == "refused"
    world.failures.clear()
    result = await controller.reconcile(KEY)
    assert (result.outcome, result.requeue_after_s) == ("settled", 0.0), "what the status says of it is over"
    assert (await controller.reconcile(KEY)).requeue_after_s is None
    problem = Problem(dependency="request", message="CreateStack was refused: exceeded quota", holds_back=False)
    assert [observed.problems for _, observed, _ in world.seen] == [(), (problem,), (problem,), ()]


@pytest.mark.parametrize(("error", "outcome"), [(Retryable("away"), "delayed"), (Rejected("forbidden"), "refused")])
@pytest.mark.parametrize("first", [action for action, call in EVERY_ACTION if call[0].startswith("registry.")])
async def test_a_registry_that_fails_keeps_nothing_else_from_being_done(
    world: Any, first: Action, error: PortError, outcome: str, a_plan: Call
) -> None:
    """Champion repair and traffic come after it, and must not wait for a record for people."""
    failing = next(call[0] for action, call in EVERY_ACTION if action is first)
    world.failures = {failing: error, "workloads.stop": Retryable("a later trouble")}
    others = [(action, call) for action, call in EVERY_ACTION if not call[0].startswith("registry.")]
    later = [action for action, call in EVERY_ACTION if call[0].startswith("registry.") and action is not first]
    serving = [(action, call) for action, call in others if call[0].startswith(("stacks.", "traffic."))]
    status = RetrievalModelStatus(observed_generation=1)
    plan = a_plan(first, *later, *(action for action, _ in serving), STOP, START, status=status)
    result = await world.controller(plan).reconcile(KEY)
    assert result.outcome == outcome, "the first trouble counts"
    done = [call for call in world.writes if call[0] != "models.emit"]
    assert [call[0] for call in done] == [
        failing,
        *(call[0] for _, call in serving),
        "workloads.stop",
        "models.write_status",
    ]


async def test_a_refusal_is_told_to_people_as_an_event(world: Any, a_plan: Call) -> None:
    world.failures["workloads.start"] = Rejected("no program retrieval-train; install the trainer extra")
    await world.controller(a_plan(START)).reconcile(KEY)
    (emitted,) = [call[1] for call in world.writes if call[0] == "models.emit"]
    assert emitted == EmitEvent(
        type="Warning",
        reason=Reason.BACKING_OFF,
        message="StartWorkload was refused: no program retrieval-train; install the trainer extra",
    )


@pytest.mark.parametrize("action", [action for action, call in EVERY_ACTION if call[0].startswith("registry.")])
@pytest.mark.parametrize("error", [None, Retryable("cut half-way")])
async def test_a_write_to_the_registry_makes_its_view_too_old(
    world: Any, action: Action, error: PortError | None, a_plan: Call
) -> None:
    if error:
        world.failures[next(call[0] for known, call in EVERY_ACTION if known is action)] = error
    controller = world.controller(a_plan(action), a_plan())
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("victim", range(3))
async def test_a_pass_can_be_cut_at_every_action_boundary(world: Any, moment: str, victim: int, a_plan: Call) -> None:
    actions = (START, ALIAS, STOP)
    seen: list[tuple[str, Action]] = []

    def kill(at: str, action: Action) -> None:
        seen.append((at, action))
        if (at, action) == (moment, actions[victim]):
            raise Killed

    status = RetrievalModelStatus(observed_generation=1)
    controller = world.controller(a_plan(*actions, status=status), on_action=kill)
    with pytest.raises(Killed):
        await controller.reconcile(KEY)
    assert len(world.writes) == victim + (moment == "after")
    assert seen[-1] == (moment, actions[victim])

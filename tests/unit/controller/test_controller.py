"""The loop on its own: ports that record every call, and a stand-in for `decide` that returns scripted plans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, get_args

import pytest
from prometheus_client import REGISTRY

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import Candidate, CandidateKind, RetrievalModelStatus, StackRecord
from retrieval_operator.controller import Controller
from retrieval_operator.domain import plan as plans
from retrieval_operator.domain.observed import Observed, Problem, RegistryObserved, TrafficObserved
from retrieval_operator.domain.plan import Action, EmitEvent, Plan
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.perform import CALLS, Ports
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale
from retrieval_operator.work_queue import Backoff, WorkQueue

KEY = "default/feed"
NOW = 1_700_000_000
RECORD = StackRecord(
    stack="s-1",
    bundle_id="b-1",
    bundle_uri="/b",
    generation_id="g-1",
    generation_uri="/g",
    generation_key="k-1",
    serving_hash="h",
    revision="r-1",
)
WORKLOAD = WorkloadSpec(
    name="feed-1-train-1", step=WorkloadStep.TRAIN, key="1", attempt=1, program="retrieval-train", arguments=()
)
CANDIDATE = Candidate(
    id="1", kind=CandidateKind.REVISION, revision="1", generation=1, started_at=NOW, step_started_at=NOW
)

# One action of every type, with the port call that performs it.
EVERY_ACTION: list[tuple[Action, tuple[Any, ...]]] = [
    (run := plans.EnsureRun(step="train", key="1", name="train"), ("registry.ensure_run", run)),
    (plans.TagRun(run_id="7", tags={"a": "b"}), ("registry.tag_run", "7", {"a": "b"})),
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
    (plans.CreateStack(record=RECORD, replicas=2), ("stacks.create", RECORD, 2)),
    (plans.ScaleStack(stack="s-1", replicas=3), ("stacks.scale", "s-1", 3)),
    (plans.DeleteStack(stack="s-1"), ("stacks.delete", "s-1")),
    (plans.SwitchTraffic(record=RECORD, observed_version="9"), ("traffic.switch", RECORD, "9", NOW)),
    (plans.StopTraffic(), ("traffic.close",)),
    (
        event := EmitEvent(type="Normal", reason=Reason.PROMOTED, message="yes"),
        ("models.emit", event, NOW),
    ),
    (plans.SetFinalizer(present=True), ("models.set_finalizer", True)),
]
START, STOP, ALIAS = EVERY_ACTION[5][0], EVERY_ACTION[6][0], EVERY_ACTION[4][0]
OBSERVE = {"workloads.observe", "stacks.observe", "traffic.observe", "registry.observe", "surroundings.problems"}
READS = {"models.get", *OBSERVE}


class World:
    """Ports whose every call is recorded as (port.method, *arguments without the model), and may be made to fail."""

    def __init__(self, model: RetrievalModel | None) -> None:
        self.model = model
        self.now = NOW
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, BaseException] = {}
        self.during: dict[str, Callable[[], Any]] = {}
        self.answers: dict[str, Any] = {
            "workloads.observe": (),
            "stacks.observe": {},
            "traffic.observe": TrafficObserved(),
            "registry.observe": RegistryObserved(page="http://mlflow"),
            "surroundings.problems": (),
        }

    def ports(self) -> Ports:
        names = ("models", "workloads", "stacks", "traffic", "registry", "surroundings")
        return Ports(**{name: Recorder(self, name) for name in names})  # type: ignore[arg-type]

    @property
    def writes(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] not in READS]

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


class Recorder:
    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: self._world.call(f"{self._name}.{method}", arguments)


def a_model(**metadata: Any) -> RetrievalModel:
    return parse_manifest(
        {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": "feed", "uid": "u-1", **metadata},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "promotion": {"gates": [{"min": "0.1"}]},
            },
        },
        "test",
    )


def a_plan(*actions: Action, status: RetrievalModelStatus | None = None, requeue: float | None = None) -> Plan:
    return Plan(actions=actions, status=status or RetrievalModelStatus(), requeue_after_s=requeue)


class Decisions:
    """Returns the scripted plans in order, the last one for ever; remembers what it was shown."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = list(plans)
        self.seen: list[tuple[RetrievalModel, Observed, int]] = []

    def __call__(self, model: RetrievalModel, observed: Observed, now: int) -> Plan:
        self.seen.append((model, observed, now))
        return self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]


def a_controller(world: World, decide: Decisions, **options: Any) -> Controller:
    return Controller(world.ports(), decide, lambda: world.now, **options)


@pytest.fixture
def world() -> World:
    return World(a_model())


# -- one pass ---------------------------------------------------------------------------------------------------------


def test_the_table_of_calls_has_a_row_for_every_action() -> None:
    assert set(CALLS) == set(get_args(Action))
    assert {type(action) for action, _ in EVERY_ACTION} == set(CALLS)


async def test_every_action_becomes_its_port_call_in_the_plans_order(world: World) -> None:
    controller = a_controller(world, Decisions(a_plan(*(action for action, _ in EVERY_ACTION))))
    result = await controller.reconcile(KEY)
    assert result.outcome == "acted"
    assert world.writes == [call for _, call in EVERY_ACTION]


async def test_a_settled_object_costs_reads_only(world: World) -> None:
    decide = Decisions(a_plan(requeue=17.0))
    result = await a_controller(world, decide).reconcile(KEY)
    assert (result.outcome, result.requeue_after_s) == ("settled", 17.0)
    assert world.writes == []
    assert {call[0] for call in world.calls} == READS


async def test_decide_sees_everything_the_ports_reported_and_the_time(world: World) -> None:
    problem = Problem(dependency="storage", message="no space")
    world.answers["surroundings.problems"] = (problem,)
    decide = Decisions(a_plan())
    await a_controller(world, decide).reconcile(KEY)
    (model, observed, now) = decide.seen[0]
    assert (model, now) == (world.model, NOW)
    assert observed == Observed(registry=RegistryObserved(page="http://mlflow"), problems=(problem,))


async def test_the_ports_are_observed_concurrently(world: World) -> None:
    """Each observation waits until all five have begun: one after the other would wait for ever."""
    begun = asyncio.Barrier(5)
    world.during = dict.fromkeys(OBSERVE, begun.wait)
    result = await asyncio.wait_for(a_controller(world, Decisions(a_plan())).reconcile(KEY), timeout=5)
    assert result.outcome == "settled"


async def test_the_status_is_written_once_after_the_actions_and_only_when_it_changed(world: World) -> None:
    status = RetrievalModelStatus(observed_generation=1, phase="Training")
    controller = a_controller(world, Decisions(a_plan(START, status=status), a_plan(status=status)))
    await controller.reconcile(KEY)
    assert [call[0] for call in world.writes] == ["workloads.start", "models.write_status"]
    await controller.reconcile(KEY)
    assert world.count("models.write_status") == 1


async def test_an_event_alone_is_no_reason_to_look_again_at_once(world: World) -> None:
    controller = a_controller(world, Decisions(a_plan(event, requeue=30)))
    result = await controller.reconcile(KEY)
    assert (result.outcome, result.requeue_after_s) == ("settled", 30)


async def test_the_same_actions_twice_in_a_row_are_backed_off(world: World) -> None:
    """Else a world that does not follow (a stale watch, a hanging process) would make a busy loop."""
    decide = Decisions(a_plan(START), a_plan(START), a_plan(STOP), a_plan(), a_plan(STOP))
    controller = a_controller(world, decide)
    outcomes = [(await controller.reconcile(KEY)).outcome for _ in range(5)]
    assert outcomes == ["acted", "repeated", "acted", "settled", "acted"]


async def test_an_object_that_is_no_more_ends_quietly(world: World) -> None:
    world.model = None
    assert (await a_controller(world, Decisions(a_plan())).reconcile(KEY)).outcome == "gone"
    assert world.calls == [("models.get",)] or world.calls == [("models.get", KEY)]


# -- what ports raise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome", "status_written"),
    [
        (Retryable("busy"), "delayed", True),
        (Rejected("quota"), "refused", True),
        (Stale("another uid"), "stale", False),
        (Gone("deleted"), "gone", False),
        (ZeroDivisionError("a defect"), "crashed", False),
    ],
)
async def test_an_action_that_fails_stops_those_after_it(
    world: World, error: Exception, outcome: str, status_written: bool
) -> None:
    world.failures["workloads.start"] = error
    status = RetrievalModelStatus(observed_generation=1)
    result = await a_controller(world, Decisions(a_plan(START, STOP, status=status))).reconcile(KEY)
    assert result.outcome == outcome
    assert world.count("workloads.stop") == 0
    assert world.count("models.write_status") == status_written


@pytest.mark.parametrize(("error", "outcome"), [(Retryable("away"), "delayed"), (Rejected("forbidden"), "refused")])
@pytest.mark.parametrize("first", [action for action, call in EVERY_ACTION if call[0].startswith("registry.")])
async def test_a_registry_that_fails_keeps_nothing_else_from_being_done(
    world: World, first: Action, error: PortError, outcome: str
) -> None:
    """Champion repair and traffic come after it, and must not wait for a record for people."""
    failing = next(call[0] for action, call in EVERY_ACTION if action is first)
    world.failures = {failing: error, "workloads.stop": Retryable("a later trouble")}
    others = [(action, call) for action, call in EVERY_ACTION if not call[0].startswith("registry.")]
    later = [action for action, call in EVERY_ACTION if call[0].startswith("registry.") and action is not first]
    serving = [(action, call) for action, call in others if call[0].startswith(("stacks.", "traffic."))]
    status = RetrievalModelStatus(observed_generation=1)
    plan = a_plan(first, *later, *(action for action, _ in serving), STOP, START, status=status)
    result = await a_controller(world, Decisions(plan)).reconcile(KEY)
    assert result.outcome == outcome, "the first trouble counts"
    done = [call for call in world.writes if call[0] != "models.emit"]
    assert [call[0] for call in done] == [
        failing,
        *(call[0] for _, call in serving),
        "workloads.stop",
        "models.write_status",
    ]


async def test_a_refusal_is_told_to_people_as_an_event(world: World) -> None:
    world.failures["workloads.start"] = Rejected("no program retrieval-train; install the trainer extra")
    await a_controller(world, Decisions(a_plan(START))).reconcile(KEY)
    (emitted,) = [call[1] for call in world.writes if call[0] == "models.emit"]
    assert emitted == EmitEvent(
        type="Warning",
        reason=Reason.BACKING_OFF,
        message="StartWorkload was refused: no program retrieval-train; install the trainer extra",
    )


@pytest.mark.parametrize("port", sorted(OBSERVE - {"registry.observe"}))
async def test_nothing_is_decided_on_half_an_observation(world: World, port: str) -> None:
    world.failures[port] = Retryable("busy")
    decide = Decisions(a_plan(START))
    assert (await a_controller(world, decide).reconcile(KEY)).outcome == "delayed"
    assert decide.seen == []
    assert world.writes == []


@pytest.mark.parametrize("error", [Retryable("MLflow is away"), Rejected("wrong password")])
async def test_without_the_registry_the_decision_is_made_and_told_so(world: World, error: PortError) -> None:
    world.failures["registry.observe"] = error
    decide = Decisions(a_plan(START))
    assert (await a_controller(world, decide).reconcile(KEY)).outcome == "acted"
    observed = decide.seen[0][1]
    assert observed.registry is None
    assert observed.problems == (Problem(dependency="registry", message=str(error)),)


async def test_a_status_that_another_object_would_get_is_not_written(world: World) -> None:
    world.failures["models.write_status"] = Stale("replaced")
    status = RetrievalModelStatus(observed_generation=1)
    assert (await a_controller(world, Decisions(a_plan(status=status))).reconcile(KEY)).outcome == "stale"


def test_a_pass_that_hangs_is_cut_and_backed_off(in_virtual_time) -> None:
    async def story() -> str:
        world = World(a_model())
        world.during["workloads.start"] = lambda: asyncio.sleep(10_000)
        controller = a_controller(world, Decisions(a_plan(START)), pass_deadline_s=60)
        outcome = (await controller.reconcile(KEY)).outcome
        assert asyncio.get_running_loop().time() == pytest.approx(60)
        return outcome

    assert in_virtual_time(story()) == "delayed"


# -- the registry is polled only when needed ---------------------------------------------------------------------------


async def test_a_settled_objects_registry_view_is_used_until_it_is_too_old(world: World) -> None:
    controller = a_controller(world, Decisions(a_plan()), registry_poll_s=30)
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
async def test_whatever_people_ask_for_polls_the_registry(world: World, change: dict[str, Any]) -> None:
    controller = a_controller(world, Decisions(a_plan()))
    await controller.reconcile(KEY)
    world.model = a_model(**change)
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


async def test_a_candidate_in_flight_polls_the_registry_in_every_pass(world: World) -> None:
    status = RetrievalModelStatus(candidate=CANDIDATE)
    controller = a_controller(world, Decisions(a_plan(status=status)))
    for _ in range(3):
        await controller.reconcile(KEY)
    assert world.count("registry.observe") == 3


@pytest.mark.parametrize("action", [action for action, call in EVERY_ACTION if call[0].startswith("registry.")])
@pytest.mark.parametrize("error", [None, Retryable("cut half-way")])
async def test_a_write_to_the_registry_makes_its_view_too_old(
    world: World, action: Action, error: PortError | None
) -> None:
    if error:
        world.failures[next(call[0] for known, call in EVERY_ACTION if known is action)] = error
    controller = a_controller(world, Decisions(a_plan(action), a_plan()))
    await controller.reconcile(KEY)
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


async def test_an_unreachable_registry_is_asked_again_in_the_next_pass(world: World) -> None:
    controller = a_controller(world, Decisions(a_plan()))
    world.failures["registry.observe"] = Retryable("away")
    await controller.reconcile(KEY)
    del world.failures["registry.observe"]
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


# -- the seams for crash tests -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("victim", range(3))
async def test_a_pass_can_be_cut_at_every_action_boundary(world: World, moment: str, victim: int) -> None:
    actions = (START, ALIAS, STOP)
    seen: list[tuple[str, Action]] = []

    def kill(at: str, action: Action) -> None:
        seen.append((at, action))
        if (at, action) == (moment, actions[victim]):
            raise Killed

    status = RetrievalModelStatus(observed_generation=1)
    controller = a_controller(world, Decisions(a_plan(*actions, status=status)), on_action=kill)
    with pytest.raises(Killed):
        await controller.reconcile(KEY)
    assert len(world.writes) == victim + (moment == "after")
    assert seen[-1] == (moment, actions[victim])


async def test_a_preview_decides_and_performs_nothing(world: World) -> None:
    plan = a_plan(START, status=RetrievalModelStatus(observed_generation=1))
    assert world.model is not None
    _, previewed = await a_controller(world, Decisions(plan)).preview(world.model)
    assert previewed == plan
    assert world.writes == []


# -- requeue -----------------------------------------------------------------------------------------------------------


def passes(in_virtual_time: Any, world: World, decide: Decisions, until_s: float) -> Sequence[float]:
    """The times at which passes began, from one key added at 0, with a back-off of 1, 2, 4, ... seconds."""

    async def story() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        queue = WorkQueue(backoff=Backoff(jitter=0))

        async def note() -> None:
            times.append(loop.time())

        world.during["models.get"] = note
        queue.add(KEY)
        work = asyncio.create_task(a_controller(world, decide).work(queue, workers=2))
        await asyncio.sleep(until_s)
        queue.stop()
        await work
        return times

    return in_virtual_time(story())


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        pytest.param([a_plan()], [0], id="settled without a date: never"),
        pytest.param([a_plan(requeue=4)], [0, 4, 8], id="settled: when the plan says"),
        pytest.param([a_plan(START), a_plan(STOP), a_plan()], [0, 0, 0], id="acted: at once"),
        pytest.param([a_plan(START)], [0, 0, 1, 3, 7], id="repeated: backed off"),
    ],
)
def test_when_the_next_pass_comes(in_virtual_time, world: World, plans: list[Plan], expected: list[float]) -> None:
    assert passes(in_virtual_time, world, Decisions(*plans), until_s=9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retryable("busy"), [0, 1, 3, 7]),
        (Rejected("quota"), [0, 1, 3, 7]),
        (Stale("older"), [0, 0, 2, 6]),
        (ZeroDivisionError("a defect"), [0, 1, 3, 7]),
        (Gone("deleted"), [0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_when_a_failed_pass_is_repeated(in_virtual_time, world: World, error: Exception, expected: list[float]) -> None:
    world.failures["workloads.start"] = error
    assert passes(in_virtual_time, world, Decisions(a_plan(START)), until_s=9) == pytest.approx(expected)


# -- log and metrics ---------------------------------------------------------------------------------------------------


def logged(log: StringIO) -> dict[str, Any]:
    (line,) = log.getvalue().splitlines()
    return json.loads(line)


async def test_a_pass_is_one_log_line_that_says_what_it_was_about(world: World, log: StringIO) -> None:
    status = RetrievalModelStatus(candidate=CANDIDATE.model_copy(update={"stack": "s-1", "revision": "r-1"}))
    await a_controller(world, Decisions(a_plan(START, status=status))).reconcile(KEY)
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


async def test_a_pass_without_news_is_only_for_debugging(world: World, log: StringIO) -> None:
    await a_controller(world, Decisions(a_plan())).reconcile(KEY)
    assert logged(log)["level"] == "debug"


@pytest.mark.parametrize(("error", "has_traceback"), [(Retryable("busy"), False), (ZeroDivisionError("oh"), True)])
async def test_only_a_defect_is_logged_with_its_traceback(
    world: World, log: StringIO, error: Exception, has_traceback: bool
) -> None:
    world.failures["workloads.start"] = error
    await a_controller(world, Decisions(a_plan(START))).reconcile(KEY)
    line = logged(log)
    assert (line["level"], line["error"]) == ("warning", str(error))
    assert ("exception" in line) is has_traceback


async def test_passes_actions_and_errors_are_counted(world: World) -> None:
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
    await a_controller(world, Decisions(a_plan(START, STOP))).reconcile(KEY)
    assert [value(name, **labels) for name, labels in names] == [count + 1 for count in before]

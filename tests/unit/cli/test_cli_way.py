"""The steps that people are shown are those that decisions take; and the sentence on what comes next."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from rich.console import RenderableType

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.constants import ROLLBACK_ANNOTATION
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import CandidateKind, Step
from retrieval_operator.cli import following
from retrieval_operator.cli.way import way, what_next
from retrieval_operator.domain.simulate import World, run_until_settled, with_status
from retrieval_operator.ports import Retryable


def with_spec(model: RetrievalModel, **parts: object) -> RetrievalModel:
    spec = model.spec.explicit()
    for name, part in parts.items():
        spec[name] = spec.get(name, {}) | part if isinstance(part, dict) else part
    return model.model_copy(update={"spec": type(model.spec).model_validate(spec)})


def with_status_of(model: RetrievalModel, **fields: object) -> RetrievalModel:
    return with_status(model, model.status.model_copy(update=fields))


def settled(model: RetrievalModel, world: World) -> tuple[RetrievalModel, list[tuple[Step, list[Step]]]]:
    """The object after what it asks for, and each step it was at with the way that was shown then."""
    seen = []
    model_now = model
    for before, plan in run_until_settled(model, world):
        model_now = with_status(before, plan.status)
        candidate = plan.status.candidate
        if candidate is not None:
            seen.append((candidate.step, list(way(candidate, model.spec))))
    return model_now, seen


@pytest.fixture
def live(fresh: RetrievalModel, now: int) -> tuple[RetrievalModel, World]:
    """Promoted once, automatically."""
    world = World(now=now)
    gates = [gate.explicit() for gate in fresh.spec.promotion.gates]
    automatic = with_spec(fresh, promotion={"mode": "Automatic", "gates": gates})
    return settled(automatic, world)[0], world


@pytest.mark.parametrize(
    ("parts", "kind", "first"),
    [
        ({"data": {"revision": "day-4"}}, CandidateKind.REVISION, Step.TRAINING),
        ({"index": {"refresh": {"revision": "2"}}}, CandidateKind.REFRESH, Step.INDEXING_SERVING),
        ({"serving": {"image": "server:2"}}, CandidateKind.SERVING, Step.DEPLOYING),
    ],
)
def test_each_kind_walks_the_way_that_is_shown(
    live: tuple[RetrievalModel, World], parts: dict[str, object], kind: CandidateKind, first: Step
) -> None:
    model, world = live
    _, seen = settled(with_spec(model, **parts), world)
    shown = seen[-1][1]
    walked = list(dict.fromkeys(step for step, _ in seen if step is not Step.PENDING))
    assert (shown[0], shown[-1]) == (first, Step.PROMOTING)
    assert [step for step in shown if step in walked] == walked, f"{kind} goes another way than is shown"


def test_a_rollback_to_a_stack_that_was_removed_is_not_verified_again(live: tuple[RetrievalModel, World]) -> None:
    first, world = live
    second, _ = settled(with_spec(first, serving={"image": "server:2"}), world)
    assert first.status.champion is not None and second.status.champion is not None
    del world.stacks[first.status.champion.stack]
    asked = {ROLLBACK_ANNOTATION: f"{second.status.champion.token}:{first.status.champion.stack}"}
    metadata = second.metadata.model_copy(update={"annotations": asked})
    _, seen = settled(second.model_copy(update={"metadata": metadata}), world)
    assert seen[0][1] == [Step.DEPLOYING, Step.PROMOTING]


def test_approval_is_a_step_where_a_person_is_asked(busy: RetrievalModel) -> None:
    candidate = busy.status.candidate
    assert candidate is not None
    assert Step.AWAITING_APPROVAL in way(candidate, busy.spec)
    gates = [gate.explicit() for gate in busy.spec.promotion.gates]
    automatic = with_spec(busy, promotion={"mode": "Automatic", "gates": gates}).spec
    assert Step.AWAITING_APPROVAL in way(candidate, automatic), "it is there still, until the next pass"
    training = candidate.model_copy(update={"step": Step.TRAINING})
    assert Step.AWAITING_APPROVAL not in way(training, automatic)


def condition(type_: ConditionType, status: str, reason: Reason, message: str) -> Condition:
    return Condition(
        type=type_,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        observed_generation=3,
        last_transition_time=1,
    )


STALLED = condition(ConditionType.STALLED, "True", Reason.GATES_FAILED, "recall is below min")
UNREADABLE = condition(ConditionType.STALLED, "True", Reason.INVALID_SPEC, "correct it")
MISSING = condition(ConditionType.DEPENDENCIES_READY, "False", Reason.DEPENDENCY_MISSING, "storage: no claim models")
PROMOTED = condition(ConditionType.PROMOTED, "True", Reason.PROMOTED, "stack s-0002 is champion")
DOWN = condition(ConditionType.READY, "False", Reason.CHAMPION_NOT_READY, "stack s-0002 has no ready server")
WAITS = condition(ConditionType.PROMOTED, "False", Reason.REGISTRY_UNAVAILABLE, "MLflow is not reachable")

STAYS = condition(
    ConditionType.STALLED, "True", Reason.REGISTRY_UNAVAILABLE, "MLflow is not reachable; or let the files stay"
)

Change = Callable[[RetrievalModel, int], RetrievalModel]


def quiet(model: RetrievalModel, *conditions: Condition) -> RetrievalModel:
    return with_status_of(model, candidate=None, conditions=list(conditions))


def baking(model: RetrievalModel, now: int) -> RetrievalModel:
    assert model.status.champion is not None
    champion = model.status.champion.model_copy(update={"baking_until": now + 60})
    return with_status_of(quiet(model, PROMOTED), champion=champion)


def at(model: RetrievalModel, step: Step) -> RetrievalModel:
    assert model.status.candidate is not None
    return with_status_of(model, candidate=model.status.candidate.model_copy(update={"step": step}), conditions=[])


def going_back(model: RetrievalModel) -> RetrievalModel:
    assert model.status.candidate is not None
    return with_status_of(model, candidate=model.status.candidate.model_copy(update={"kind": CandidateKind.ROLLBACK}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m, _: with_status_of(m, observed_generation=2), "no operator has looked at generation 3 yet"),
        (lambda m, _: at(m, Step.PENDING), "Training, then Registration"),
        (lambda m, _: at(m, Step.EVALUATING), "Evaluation, then Index"),
        (lambda m, _: at(m, Step.PROMOTING), "Promotion"),
        (lambda m, _: at(m, Step.AWAITING_APPROVAL), "a person approves or rejects stack s-0003"),
        (
            lambda m, _: quiet(m, STALLED),
            "a person has to act: recall is below min; change the spec, or ask for a retry",
        ),
        (lambda m, _: quiet(m, UNREADABLE), "a person has to act: correct it"),
        (lambda m, _: quiet(m, MISSING), "something is missing: storage: no claim models"),
        (lambda m, _: quiet(m, WAITS), "MLflow is not reachable"),
        (
            lambda m, _: with_spec(m, suspend=True),
            "it is suspended: no new work is started, the champion keeps serving",
        ),
        (
            lambda m, _: with_status_of(with_spec(m, suspend=True), champion=None),
            "it is suspended: no new work is started",
        ),
        (
            lambda m, _: going_back(with_spec(at(m, Step.DEPLOYING), suspend=True)),
            "Stack, then Promotion",
        ),
        (lambda m, _: quiet(m, PROMOTED), "nothing, until something is changed"),
        (
            lambda m, _: quiet(m, PROMOTED, DOWN),
            "the champion is made ready again: stack s-0002 has no ready server",
        ),
        (
            lambda m, _: with_spec(quiet(m, PROMOTED, DOWN), data={"schedule": "0 3 * * *"}),
            "the champion is made ready again: stack s-0002 has no ready server; "
            "the next training at 2023-11-15 03:00:00Z",
        ),
        (
            lambda m, _: with_status_of(quiet(m, PROMOTED, DOWN), champion=None),
            "nothing, until something is changed",
        ),
        (baking, "until 2023-11-14 22:14:20Z a failed check rolls back"),
        (
            lambda m, _: with_spec(
                quiet(m, PROMOTED),
                data={"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"},
                index={"refresh": {"schedule": "0 * * * *"}},
            ),
            "the next training at 2023-11-15 02:00:00Z; the next index refresh at 2023-11-14 23:00:00Z",
        ),
    ],
)
def test_what_comes_next_is_a_sentence(busy: RetrievalModel, now: int, change: Change, sentence: str) -> None:
    assert what_next(change(busy, now), now) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m, _: m, "it is being deleted"),
        (
            lambda m, _: with_status_of(m, observed_generation=2),
            "it is being deleted; no operator has looked at generation 3 yet",
        ),
        (lambda m, _: quiet(m, STAYS), "it is being deleted; MLflow is not reachable; or let the files stay"),
        (
            lambda m, _: with_status_of(quiet(m, STALLED), observed_generation=2),
            "it is being deleted; no operator has looked at generation 3 yet",
        ),
    ],
)
def test_a_deleted_object_has_only_that_before_it_and_says_what_keeps_it(
    busy: RetrievalModel, now: int, change: Change, sentence: str
) -> None:
    deleted = busy.metadata.model_copy(update={"deletion_timestamp": now})
    assert what_next(change(busy.model_copy(update={"metadata": deleted}), now), now) == sentence


async def test_following_draws_until_a_signal_and_waits_for_what_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_LOOK_S", 0.01)
    drawn: list[str] = []

    async def draw() -> RenderableType:
        drawn.append("look")
        if len(drawn) == 2:
            raise Retryable("the API server does not answer")
        if len(drawn) == 3:
            signal.raise_signal(signal.SIGINT)
        return f"look {len(drawn)}"

    await following.follow(draw)
    assert len(drawn) == 3
    assert "look 3" in capsys.readouterr().out

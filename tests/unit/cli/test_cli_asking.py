from __future__ import annotations

from collections.abc import Callable

import pytest

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.constants import RETRY_ANNOTATION, ROLLBACK_ANNOTATION
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.cli import asking


def changed(model: RetrievalModel, **status: object) -> RetrievalModel:
    return model.model_copy(update={"status": model.status.model_copy(update=status)})


def annotated(model: RetrievalModel, **annotations: str) -> RetrievalModel:
    metadata = model.metadata.model_copy(update={"annotations": annotations})
    return model.model_copy(update={"metadata": metadata})


def with_former_stacks(model: RetrievalModel) -> RetrievalModel:
    """s-0002 is live; s-0001 was before it, s-0000 before that."""
    (promoted,) = [entry for entry in model.status.history if entry.outcome == "Promoted"]
    assert promoted.record is not None
    former = [
        promoted.model_copy(update={"record": promoted.record.model_copy(update={"stack": stack})})
        for stack in ("s-0001", "s-0000")
    ]
    return changed(model, history=[*model.status.history, *former])


@pytest.mark.parametrize("ask", [asking.approval, asking.rejection])
def test_only_a_waiting_candidate_can_be_answered(
    busy: RetrievalModel, fresh: RetrievalModel, ask: Callable[[RetrievalModel], asking.Request]
) -> None:
    assert busy.status.candidate is not None
    with pytest.raises(asking.NothingToAsk, match="nothing is in flight"):
        ask(fresh)
    training = busy.status.candidate.model_copy(update={"step": Step.TRAINING})
    with pytest.raises(asking.NothingToAsk, match="Revision r3 is at Training"):
        ask(changed(busy, candidate=training))


@pytest.mark.parametrize(
    ("target", "former", "chosen"),
    [
        ("", "s-0001", "s-0001"),
        ("", "", "s-0001"),  # the traffic forgot it, the history did not
        ("s-0000", "s-0001", "s-0000"),
    ],
)
def test_a_rollback_names_what_is_live_and_where_to_go(
    busy: RetrievalModel, target: str, former: str, chosen: str
) -> None:
    request = asking.rollback(with_former_stacks(busy), target, former)
    assert request.annotations == {ROLLBACK_ANNOTATION: f"{busy.status.champion.token}:{chosen}"}


@pytest.mark.parametrize("target", ["s-0002", "s-0003", "s-9999"])
def test_a_rollback_goes_only_to_a_stack_that_was_live_before(busy: RetrievalModel, target: str) -> None:
    with pytest.raises(asking.NothingToAsk, match="expected a former stack: s-0001, s-0000"):
        asking.rollback(with_former_stacks(busy), target, "s-0001")


def test_the_first_stack_has_nothing_to_return_to(busy: RetrievalModel, fresh: RetrievalModel) -> None:
    with pytest.raises(asking.NothingToAsk, match="no stack is live yet"):
        asking.rollback(fresh, "", "")
    with pytest.raises(asking.NothingToAsk, match="the first one"):
        asking.rollback(busy, "", "")


def test_retry_is_refused_when_nothing_failed(busy: RetrievalModel, fresh: RetrievalModel, now: int) -> None:
    for model in (fresh, changed(busy, candidate=None)):  # the second: an old refusal that nobody asks for any more
        with pytest.raises(asking.NothingToAsk, match="nothing has failed"):
            asking.retry(model, now)


def test_what_is_in_flight_can_be_given_fresh_attempts(busy: RetrievalModel, now: int) -> None:
    assert asking.retry(busy, now).annotations.keys() == {RETRY_ANNOTATION}


def stalled(model: RetrievalModel) -> RetrievalModel:
    condition = Condition(
        type=ConditionType.STALLED,
        status="True",
        reason=Reason.ALREADY_REFUSED,
        observed_generation=3,
        last_transition_time=0,
    )
    return changed(model, candidate=None, conditions=[*model.status.conditions, condition])


@pytest.mark.parametrize("kept", [2, 1, 0])
def test_a_retry_is_for_what_is_stalled_whatever_is_left_of_the_history(
    busy: RetrievalModel, now: int, kept: int
) -> None:
    """The newest entry may be a promotion (the manifest went back to what was refused), or the history wiped."""
    history = busy.status.history[len(busy.status.history) - kept :]
    refused = stalled(changed(busy, history=history))
    assert asking.retry(refused, now).annotations[RETRY_ANNOTATION] == "2023-11-14 22:13:20Z"

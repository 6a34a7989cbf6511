from __future__ import annotations

import pytest

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import CandidateKind
from retrieval_operator.cli.waiting import Until, Verdict, progress, verdict

T = ConditionType


def with_conditions(model: RetrievalModel, *conditions: Condition, **status: object) -> RetrievalModel:
    changed = model.status.model_copy(update={"conditions": list(conditions), **status})
    return model.model_copy(update={"status": changed})


def condition(type_: ConditionType, status: str, *, generation: int = 3) -> Condition:
    return Condition(
        type=type_,
        status=status,  # type: ignore[arg-type]
        reason=Reason.GATES_FAILED,
        message="because",
        observed_generation=generation,
        last_transition_time=1,
    )


def test_nothing_is_said_about_a_generation_that_no_controller_saw(busy: RetrievalModel) -> None:
    newer = busy.model_copy(update={"metadata": busy.metadata.model_copy(update={"generation": 4})})
    assert verdict(newer, Until.PROMOTED) is None
    assert verdict(newer, Until.SETTLED) is None
    assert progress(newer) == "waiting for the controller"


@pytest.mark.parametrize(
    ("conditions", "in_flight", "promoted", "settled"),
    [
        pytest.param([condition(T.PROMOTED, "True")], False, True, True, id="promoted"),
        pytest.param([condition(T.PROMOTED, "False")], True, None, None, id="a candidate is in flight"),
        pytest.param([condition(T.PROMOTED, "False"), condition(T.STALLED, "True")], False, False, False, id="refused"),
        pytest.param(
            [condition(T.STALLED, "True")], True, False, False, id="stalled with a candidate (an immutable field)"
        ),
        pytest.param(
            [condition(T.PROMOTED, "True", generation=2), condition(T.RECONCILING, "True")],
            False,
            None,
            None,
            id="what was true of an older generation counts for nothing",
        ),
        pytest.param([condition(T.PROMOTED, "False")], False, False, True, id="nothing in flight, not promoted"),
    ],
)
def test_when_waiting_is_over(
    busy: RetrievalModel,
    conditions: list[Condition],
    in_flight: bool,
    promoted: bool | None,
    settled: bool | None,
) -> None:
    candidate = busy.status.candidate if in_flight else None
    model = with_conditions(busy, *conditions, candidate=candidate)
    for until, reached in ((Until.PROMOTED, promoted), (Until.SETTLED, settled)):
        found = verdict(model, until)
        assert (found.reached if found else None) is reached, until


@pytest.mark.parametrize("until", list(Until))
def test_what_waits_for_mlflow_is_not_over(busy: RetrievalModel, until: Until) -> None:
    away = condition(T.PROMOTED, "False").model_copy(update={"reason": Reason.REGISTRY_UNAVAILABLE})
    assert verdict(with_conditions(busy, away, candidate=None), until) is None


def test_nobody_waits_for_a_suspended_candidate_but_for_a_way_back(busy: RetrievalModel) -> None:
    rests = with_conditions(busy, condition(T.PROMOTED, "False"))
    rests = rests.model_copy(update={"spec": rests.spec.model_copy(update={"suspend": True})})
    assert verdict(rests, Until.SETTLED) == Verdict(True, "GatesFailed: because")
    found = verdict(rests, Until.PROMOTED)
    assert found is not None and not found.reached
    assert rests.status.candidate is not None
    back = rests.status.candidate.model_copy(update={"kind": CandidateKind.ROLLBACK})
    assert verdict(with_conditions(rests, condition(T.PROMOTED, "False"), candidate=back), Until.SETTLED) is None


def test_the_verdict_says_why(busy: RetrievalModel) -> None:
    refused = with_conditions(busy, condition(T.STALLED, "True"), candidate=None)
    assert verdict(refused, Until.PROMOTED) == Verdict(False, "GatesFailed: because")
    promoted = with_conditions(busy, condition(T.PROMOTED, "True"), candidate=None)
    assert verdict(promoted, Until.PROMOTED) == Verdict(True, "stack s-0002 is live at http://127.0.0.1:8600")


def test_progress_names_the_step_and_its_message(busy: RetrievalModel) -> None:
    assert progress(busy) == "AwaitingApproval: Stack s-0003 waits for approval."

"""A candidate's way as people see it, and what comes next, from the object alone: MLflow is not asked. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import Candidate, CandidateKind, Step
from retrieval_operator.cli.words import clock_time
from retrieval_operator.domain.candidates import rests
from retrieval_operator.domain.schedule import next_slot_at

NAMES: Mapping[Step, str] = {
    Step.TRAINING: "Training",
    Step.REGISTERING: "Registration",
    Step.INDEXING_EVALUATION: "Evaluation index",
    Step.EVALUATING: "Evaluation",
    Step.INDEXING_SERVING: "Index",
    Step.DEPLOYING: "Stack",
    Step.VERIFYING: "Verification",
    Step.AWAITING_APPROVAL: "Approval",
    Step.PROMOTING: "Promotion",
}
# The steps of domain/milestones, by what is new.
_BEGINS_AT: Mapping[CandidateKind, Step] = {
    CandidateKind.REVISION: Step.TRAINING,
    CandidateKind.REFRESH: Step.INDEXING_SERVING,
    CandidateKind.SERVING: Step.DEPLOYING,
    CandidateKind.ROLLBACK: Step.DEPLOYING,
}
_ORDER = list(NAMES)
# These sentences say themselves what to do; no retry helps.
_WITH_REMEDY = frozenset({Reason.INVALID_SPEC, Reason.IMMUTABLE_FIELD_CHANGED})


def way(candidate: Candidate, spec: RetrievalModelSpec) -> Sequence[Step]:
    """Its steps, in order. The one it is at is among them, whatever the spec says by now."""
    kind, left_out = candidate.kind, set[Step]()
    if kind is not CandidateKind.REVISION or spec.promotion.mode == "Automatic":
        left_out.add(Step.AWAITING_APPROVAL)
    if kind is CandidateKind.ROLLBACK:
        left_out.add(Step.VERIFYING)
    from_there = _ORDER[_ORDER.index(_BEGINS_AT[kind]) :]
    return [step for step in from_there if step not in left_out or step is candidate.step]


def is_behind(step: Step, candidate: Candidate) -> bool:
    return candidate.step is not Step.PENDING and _ORDER.index(step) < _ORDER.index(candidate.step)


def what_next(model: RetrievalModel, now: int) -> str:
    """In a sentence, what happens next or what is waited for."""
    status, generation = model.status, model.metadata.generation
    conditions = {condition.type: condition for condition in status.conditions}
    unseen = status.observed_generation != generation
    nobody_looked = f"no operator has looked at generation {generation} yet" if unseen else ""
    if model.metadata.deletion_timestamp is not None:
        keeps_it = nobody_looked or _trouble(conditions)
        return f"it is being deleted; {keeps_it}" if keeps_it else "it is being deleted"
    if nobody_looked:
        return nobody_looked
    held_up = _held_up(model, conditions)
    if held_up:
        return held_up
    if status.candidate is not None:
        return _after(status.candidate, model.spec)
    promoted = conditions.get(ConditionType.PROMOTED)
    if promoted is not None and promoted.status != "True":
        return promoted.message
    return "; ".join(_awaited(model, conditions, now)) or "nothing, until something is changed"


def _trouble(conditions: Mapping[ConditionType, Condition]) -> str:
    stalled = conditions.get(ConditionType.STALLED)
    return stalled.message if stalled is not None else ""


def _held_up(model: RetrievalModel, conditions: Mapping[ConditionType, Condition]) -> str:
    stalled = conditions.get(ConditionType.STALLED)
    if stalled is not None:
        remedy = "" if stalled.reason in _WITH_REMEDY else "; change the spec, or ask for a retry"
        return f"a person has to act: {stalled.message}{remedy}"
    if rests(model.spec, model.status.candidate):
        serving = ", the champion keeps serving" if model.status.champion is not None else ""
        return f"it is suspended: no new work is started{serving}"
    missing = conditions.get(ConditionType.DEPENDENCIES_READY)
    is_missing = missing is not None and missing.status == "False"
    return f"something is missing: {missing.message}" if missing is not None and is_missing else ""


def _after(candidate: Candidate, spec: RetrievalModelSpec) -> str:
    if candidate.step is Step.AWAITING_APPROVAL:
        return f"a person approves or rejects stack {candidate.stack}"
    ahead = [NAMES[step] for step in way(candidate, spec) if not is_behind(step, candidate)]
    return f"{', then '.join(ahead[:2])}" if ahead else candidate.message


def _awaited(model: RetrievalModel, conditions: Mapping[ConditionType, Condition], now: int) -> Iterator[str]:
    """What comes without anybody's doing: the champion's repair, and what time alone brings."""
    spec, champion = model.spec, model.status.champion
    ready = conditions.get(ConditionType.READY)
    if champion is not None and ready is not None and ready.status == "False":
        yield f"the champion is made ready again: {ready.message}"
    if champion is not None and now < champion.baking_until and spec.rollback.automatic:
        yield f"until {clock_time(champion.baking_until)} a failed check rolls back"
    schedules = (("training", spec.data.schedule), ("index refresh", spec.index.refresh.schedule))
    for what, expression in schedules:
        if expression is not None:
            yield f"the next {what} at {clock_time(next_slot_at(expression, spec.data.time_zone, now))}"

"""Conditions and the phase, from what one pass found. Set where something is known; otherwise what was said stays.

Transition times move only when a status changes. `Reconciling`, `Stalled` and `Progressing` are present only while
True; Stalled and Reconciling exclude each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrieval_operator.api.conditions import Condition, ConditionStatus, ConditionType, Reason
from retrieval_operator.api.status import Candidate, Champion, HistoryEntry, RetrievalModelStatus, Step
from retrieval_operator.domain.candidates import Wanted, asks_for_generation, asks_for_revision, rests
from retrieval_operator.domain.context import Context, cut
from retrieval_operator.domain.history import newest
from retrieval_operator.domain.identity import serving_hash

# The conditions a candidate sets on its way, with the first step at which each is behind it.
_MILESTONE_CONDITIONS: tuple[tuple[ConditionType, Step], ...] = (
    (ConditionType.TRAINING_SUCCEEDED, Step.REGISTERING),
    (ConditionType.MODEL_REGISTERED, Step.INDEXING_EVALUATION),
    (ConditionType.GATES_PASSED, Step.INDEXING_SERVING),
    (ConditionType.INDEX_READY, Step.DEPLOYING),
    (ConditionType.ENCODER_READY, Step.AWAITING_APPROVAL),
)
_PRESENT_WHILE_TRUE = frozenset({ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.PROGRESSING})
_ORDER = list(Step)
_STEP_REASON: Mapping[Step, Reason] = {
    Step.PENDING: Reason.TRAINING,
    Step.TRAINING: Reason.TRAINING,
    Step.REGISTERING: Reason.REGISTERING,
    Step.INDEXING_EVALUATION: Reason.INDEXING,
    Step.EVALUATING: Reason.EVALUATING,
    Step.INDEXING_SERVING: Reason.INDEXING,
    Step.DEPLOYING: Reason.DEPLOYING,
    Step.VERIFYING: Reason.VERIFYING,
    Step.AWAITING_APPROVAL: Reason.AWAITING_APPROVAL,
    Step.PROMOTING: Reason.PROMOTING,
    Step.BAKING: Reason.BAKING,
}
# Which condition a candidate was working towards at each step.
_AIM: Mapping[Step, ConditionType] = {
    Step.PENDING: ConditionType.TRAINING_SUCCEEDED,
    Step.TRAINING: ConditionType.TRAINING_SUCCEEDED,
    Step.REGISTERING: ConditionType.MODEL_REGISTERED,
    Step.INDEXING_EVALUATION: ConditionType.GATES_PASSED,
    Step.EVALUATING: ConditionType.GATES_PASSED,
    Step.INDEXING_SERVING: ConditionType.INDEX_READY,
    Step.DEPLOYING: ConditionType.ENCODER_READY,
    Step.VERIFYING: ConditionType.ENCODER_READY,
}


@dataclass(frozen=True)
class Found:
    """What a pass found out, for the conditions. `stalled`: (reason, message) when a person must act."""

    champion: Champion | None
    candidate: Candidate | None
    wish: Wanted | None
    history: list[HistoryEntry]
    stalled: tuple[Reason, str] | None = None


@dataclass(frozen=True)
class _Said:
    status: ConditionStatus
    reason: Reason
    message: str = ""


def conditions(context: Context, found: Found) -> list[Condition]:
    """The list to write: in a fixed order, each with the object's generation."""
    said: dict[ConditionType, _Said] = {
        ConditionType.READY: _ready(context, found),
        ConditionType.PROMOTED: _promoted(context, found),
        ConditionType.DEPENDENCIES_READY: _dependencies(context),
        ConditionType.SUSPENDED: _suspended(context, found),
        **_milestones(found),
        **_progress(context, found),
    }
    return _listed(context.status, context.model.metadata.generation, context.now, said)


def not_looked_after(
    before: RetrievalModelStatus, generation: int, reason: Reason, message: str, now: int
) -> RetrievalModelStatus:
    """The status of an object that nothing can be done for: Stalled says why, and whether it serves is not known.

    Champion and history stay for people to read.
    """
    said = {
        ConditionType.READY: _Said("Unknown", reason, message),
        ConditionType.STALLED: _Said("True", reason, message),
    }
    conditions = _listed(before, generation, now, said)
    return before.model_copy(update={"conditions": conditions, "observed_generation": generation, "phase": "Stalled"})


def of_deletion(context: Context, stalled: Reason | None, why: str) -> list[Condition]:
    """Of an object that goes: not Ready once nothing points at its stack any more, Stalled while its files cannot go.

    What else was said before stays.
    """
    said: dict[ConditionType, _Said] = {}
    if context.observed.traffic.live is None:
        said[ConditionType.READY] = _Said("False", Reason.DELETING, "being deleted, and nothing serves any more")
    if stalled is not None:
        said[ConditionType.STALLED] = _Said("True", stalled, why)
    return _listed(context.status, context.model.metadata.generation, context.now, said)


def _listed(
    before: RetrievalModelStatus, generation: int, now: int, said: Mapping[ConditionType, _Said]
) -> list[Condition]:
    """What is said now, and of what was said before all that is not present only while it is True."""
    was = {condition.type: condition for condition in before.conditions}
    types = [type_ for type_ in ConditionType if type_ in said or (type_ in was and type_ not in _PRESENT_WHILE_TRUE)]
    return [_condition(generation, now, type_, said.get(type_), was.get(type_)) for type_ in types]


def _condition(
    generation: int, now: int, type_: ConditionType, said: _Said | None, before: Condition | None
) -> Condition:
    if said is None:
        assert before is not None, "a type is listed because it was said now or before"
        return before
    same = before is not None and before.status == said.status
    return Condition(
        type=type_,
        status=said.status,
        reason=said.reason,
        message=cut(said.message),
        observed_generation=generation,
        last_transition_time=before.last_transition_time if same and before else now,
    )


def _ready(context: Context, found: Found) -> _Said:
    if found.champion is None:
        return _Said("False", Reason.NO_CHAMPION, "nothing was promoted yet")
    if context.observed.traffic.live is None:
        message = f"no stable address of the object is seen that points at stack {found.champion.stack}"
        return _Said("False", Reason.CHAMPION_NOT_READY, message)
    stack = context.observed.stacks.get(found.champion.stack)
    if stack is not None and stack.is_ready:
        where = f" at {context.observed.traffic.address}" if context.observed.traffic.address else ""
        return _Said("True", Reason.CHAMPION_SERVING, f"stack {found.champion.stack} serves{where}")
    why = "does not run" if stack is None else stack.failed or "has no ready server"
    return _Said("False", Reason.CHAMPION_NOT_READY, f"stack {found.champion.stack} {why}")


def not_begun(context: Context) -> tuple[Reason, str]:
    """Why what is wanted is not in flight."""
    if context.spec.suspend:
        return Reason.SUSPENDED, "the object is suspended"
    if context.missing:
        return Reason.DEPENDENCY_MISSING, context.missing
    if context.registry is None:
        return Reason.REGISTRY_UNAVAILABLE, context.registry_trouble
    return Reason.REMOVING_FILES, "old files go before the work of a schedule begins"


def _promoted(context: Context, found: Found) -> _Said:
    """Whether the champion is what this generation of the object asks for; what schedules add is Progressing."""
    if found.stalled is not None:
        return _Said("False", *found.stalled)
    if found.champion is not None and _is_asked_for(context, found.champion):
        return _Said("True", Reason.PROMOTED, f"stack {found.champion.stack} is champion")
    if found.candidate is not None:
        return _Said("False", _STEP_REASON[found.candidate.step], found.candidate.message)
    if found.wish is not None and found.wish.refused:
        return _Said("False", _refusal_reason(found), found.wish.refused)
    if found.wish is not None:
        return _Said("False", *not_begun(context))
    return _Said("False", Reason.NO_CHAMPION, "nothing was promoted yet")


def _is_asked_for(context: Context, champion: Champion) -> bool:
    """Whether spec and annotations ask for this very stack, under the schedule slots that it was made for."""
    return (
        asks_for_revision(context, champion)
        and asks_for_generation(context, champion)
        and champion.serving_hash == serving_hash(context.spec)
    )


def _refusal_reason(found: Found) -> Reason:
    entry = newest(found.history, found.wish.id) if found.wish is not None else None
    return entry.reason if entry is not None else Reason.ALREADY_REFUSED


def _dependencies(context: Context) -> _Said:
    problems = context.observed.problems
    if not problems:
        return _Said("True", Reason.DEPENDENCIES_MET)
    only_registry = all(problem.dependency == "registry" for problem in problems)
    reason = Reason.REGISTRY_UNAVAILABLE if only_registry else Reason.DEPENDENCY_MISSING
    return _Said("False", reason, "; ".join(f"{problem.dependency}: {problem.message}" for problem in problems))


def _suspended(context: Context, found: Found) -> _Said:
    if context.spec.suspend:
        serving = "; the champion keeps serving" if found.champion is not None else ""
        return _Said("True", Reason.SUSPENDED, f"spec.suspend is true: no new work is started{serving}")
    return _Said("False", Reason.NOT_SUSPENDED)


def _milestones(found: Found) -> dict[ConditionType, _Said]:
    if found.candidate is not None:
        return _of_candidate(found.candidate)
    if found.wish is not None:
        return _of_refusal(found)
    if found.champion is None:
        return {}
    return {type_: _Said("True", Reason.SUCCEEDED) for type_, _ in _MILESTONE_CONDITIONS}


def _of_candidate(candidate: Candidate) -> dict[ConditionType, _Said]:
    """Behind it: True. At it, or ahead: Unknown, with the step it is at. Steps another kind skips count as behind."""
    position = _ORDER.index(candidate.step)
    said = {}
    for type_, done_from in _MILESTONE_CONDITIONS:
        if position >= _ORDER.index(done_from):
            said[type_] = _Said("True", Reason.SUCCEEDED)
        else:
            said[type_] = _Said("Unknown", _STEP_REASON[candidate.step], candidate.message)
    return said


def _of_refusal(found: Found) -> dict[ConditionType, _Said]:
    """Where it ended: False, or Unknown for gates without a verdict. Before that True, after it Unknown."""
    entry = newest(found.history, found.wish.id) if found.wish is not None else None
    aim = _AIM.get(entry.step) if entry is not None and entry.step is not None else None
    if entry is None or aim is None:
        return {}
    types = [type_ for type_, _ in _MILESTONE_CONDITIONS]
    said = {type_: _Said("True", Reason.SUCCEEDED) for type_ in types[: types.index(aim)]}
    undecided = aim is ConditionType.GATES_PASSED and entry.reason is not Reason.GATES_FAILED
    said[aim] = _Said("Unknown" if undecided else "False", entry.reason, entry.message)
    ahead = _Said("Unknown", entry.reason, "not reached")
    return said | dict.fromkeys(types[types.index(aim) + 1 :], ahead)


def _progress(context: Context, found: Found) -> dict[ConditionType, _Said]:
    said, left_out = _found_progress(context, found), "; ".join(context.model.left_out)
    if not left_out:
        return said
    stalled, progressing = said.get(ConditionType.STALLED), said.get(ConditionType.PROGRESSING)
    if stalled is not None:
        message = f"{stalled.message}; and no schedule runs until it is corrected: {left_out}"
        return {ConditionType.STALLED: _Said("True", stalled.reason, message)}
    message = f"no schedule runs until it is corrected, everything else goes on: {left_out}"
    told = {ConditionType.STALLED: _Said("True", Reason.INVALID_SPEC, message)}
    return told | ({ConditionType.PROGRESSING: progressing} if progressing is not None else {})


def _found_progress(context: Context, found: Found) -> dict[ConditionType, _Said]:
    if found.stalled is not None:
        return {ConditionType.STALLED: _Said("True", *found.stalled)}
    if found.candidate is not None and rests(context.spec, found.candidate):
        return {}
    if found.candidate is not None:
        type_ = ConditionType.PROGRESSING if found.candidate.scheduled else ConditionType.RECONCILING
        return {type_: _Said("True", _STEP_REASON[found.candidate.step], found.candidate.message)}
    if found.wish is not None and found.wish.refused:
        return {ConditionType.STALLED: _Said("True", _refusal_reason(found), found.wish.refused)}
    return {}


def phase(context: Context, found: Found) -> str:
    """One word for a column. Nothing is decided by it."""
    if context.model.metadata.deletion_timestamp is not None:
        return "Deleting"
    if (
        found.stalled is not None
        or context.model.left_out
        or (found.candidate is None and found.wish is not None and found.wish.refused)
    ):
        return "Stalled"
    if rests(context.spec, found.candidate):
        return "Suspended"
    if found.candidate is not None:
        return found.candidate.step.value
    if found.champion is None:
        return "Pending"
    return "Baking" if context.now < found.champion.baking_until else "Live"

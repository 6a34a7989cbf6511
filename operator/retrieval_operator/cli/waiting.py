"""When `--wait` is over, and what it says on the way. Pure: it looks at one object after the other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.candidates import rests


class Until(StrEnum):
    PROMOTED = "promoted"  # this generation's stack is the champion
    SETTLED = "settled"  # nothing is in flight, whatever became of it


@dataclass(frozen=True)
class Verdict:
    """How the waiting ended: reached or not, and why, as a sentence."""

    reached: bool
    message: str


def verdict(model: RetrievalModel, until: Until) -> Verdict | None:
    """None while there is something to wait for. Conditions of an older generation of the object count for nothing."""
    status, generation = model.status, model.metadata.generation
    if status.observed_generation != generation:
        return None
    conditions = {c.type: c for c in status.conditions if c.observed_generation == generation}
    promoted = conditions.get(ConditionType.PROMOTED)
    if until is Until.PROMOTED and _is(promoted, "True"):
        assert status.champion is not None, "Promoted is about a champion"
        return Verdict(True, f"stack {status.champion.stack} is live at {status.address}")
    stalled = conditions.get(ConditionType.STALLED)
    # Work that has not begun because MLflow is away (for a while after every start), or old files go first, will begin.
    put_off = (Reason.REGISTRY_UNAVAILABLE, Reason.REMOVING_FILES)
    is_put_off = promoted is not None and promoted.reason in put_off
    works = status.candidate is not None and not rests(model.spec, status.candidate)
    in_flight = works or is_put_off or _is(conditions.get(ConditionType.RECONCILING), "True")
    if in_flight and not _is(stalled, "True"):
        return None
    reason = stalled or promoted
    message = f"{reason.reason}: {reason.message}" if reason else "nothing is in flight"
    return Verdict(until is Until.SETTLED and not _is(stalled, "True"), message)


def progress(model: RetrievalModel) -> str:
    """Where it is now, in a line. The same line again means that there is nothing new to say."""
    status = model.status
    if status.observed_generation != model.metadata.generation:
        return "waiting for the controller"
    candidate = status.candidate
    if candidate is None:
        return status.phase or "Pending"
    return f"{candidate.step}: {candidate.message}" if candidate.message else str(candidate.step)


def _is(condition: Condition | None, status: str) -> bool:
    return condition is not None and condition.status == status

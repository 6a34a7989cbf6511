"""What people can ask of an object: each request as the annotation that carries it. Pure; the commands set it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.constants import (
    APPROVE_ANNOTATION,
    REJECT_ANNOTATION,
    RETRAIN_ANNOTATION,
    RETRY_ANNOTATION,
    ROLLBACK_ANNOTATION,
)
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.cli.words import clock_time


class NothingToAsk(Exception):
    """The object is in no state to which the request applies; the message says in which it is."""


@dataclass(frozen=True)
class Request:
    """Annotations to set (None removes one), and what they ask for, as a sentence that follows the object's name."""

    annotations: Mapping[str, str | None]
    sentence: str


def approval(model: RetrievalModel) -> Request:
    """Let the waiting candidate take over. Raises NothingToAsk."""
    token, stack = _waiting_candidate(model)
    return Request({APPROVE_ANNOTATION: token, REJECT_ANNOTATION: None}, f"stack {stack} is approved")


def rejection(model: RetrievalModel) -> Request:
    """Refuse the waiting candidate. Raises NothingToAsk."""
    token, stack = _waiting_candidate(model)
    return Request({REJECT_ANNOTATION: token, APPROVE_ANNOTATION: None}, f"stack {stack} is rejected")


def rollback(model: RetrievalModel, target: str, former: str) -> Request:
    """Return to `target`, or for "" to the stack that was live before. Raises NothingToAsk.

    `former` is that stack as the traffic remembers it, "" for none.
    """
    champion = model.status.champion
    if champion is None:
        raise NothingToAsk("no stack is live yet, so there is nothing to return from")
    known = former_stacks(model, former)
    chosen = target or next(iter(known), "")
    if not chosen:
        raise NothingToAsk(f"stack {champion.stack} is the first one; there is no stack to return to")
    if chosen not in known:
        choice = ", ".join(known) or "none"
        raise NothingToAsk(f"found --to {chosen}, expected a former stack: {choice} (live: {champion.stack})")
    asked = {ROLLBACK_ANNOTATION: f"{champion.token}:{chosen}"}
    return Request(asked, f"traffic goes back from {champion.stack} to {chosen}")


def retry(model: RetrievalModel, now: int) -> Request:
    """Fresh attempts for what failed. Raises NothingToAsk when nothing is stalled or in flight."""
    is_stalled = any(condition.type is ConditionType.STALLED for condition in model.status.conditions)
    if model.status.candidate is None and not is_stalled:
        raise NothingToAsk("nothing has failed and nothing is in flight")
    return Request({RETRY_ANNOTATION: clock_time(now)}, "what failed gets fresh attempts")


def retrain(model: RetrievalModel) -> Request:
    """One more training of the same spec, as a schedule would ask for it."""
    counter = model.metadata.annotations.get(RETRAIN_ANNOTATION, "0")
    number = int(counter) + 1 if counter.isdigit() else 1
    return Request({RETRAIN_ANNOTATION: str(number)}, f"training number {number} of this spec is asked for")


def former_stacks(model: RetrievalModel, former: str) -> list[str]:
    """Stacks that were once live, the latest first: the traffic's own memory (`former`), then the history."""
    live = model.status.champion.stack if model.status.champion else ""
    promoted = [e.record.stack for e in model.status.history if e.record is not None and e.outcome == "Promoted"]
    return [stack for stack in dict.fromkeys((former, *promoted)) if stack and stack != live]


def _waiting_candidate(model: RetrievalModel) -> tuple[str, str]:
    candidate = model.status.candidate
    if candidate is None:
        raise NothingToAsk("nothing is in flight, so nothing waits for approval")
    if candidate.step is not Step.AWAITING_APPROVAL:
        raise NothingToAsk(f"nothing waits for approval: {candidate.kind} {candidate.id} is at {candidate.step}")
    return candidate.approval_token, candidate.stack

"""The champion: what the traffic says, its baking, and going back.

The traffic is the truth and the status follows. When the traffic moved to the candidate's stack, that was a promotion;
when it moved anywhere else, the former champion was rolled back, by us or by hand. When it is gone, since somebody
deleted the stable Service, the status remembers who was champion, and that very stack gets the traffic again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_operator.api.conditions import ConditionType, Reason
from retrieval_operator.api.constants import (
    HISTORY_MAX_ENTRIES,
    ROLLBACK_ANNOTATION,
    TAG_APPROVED_BY,
    TAG_AWAITING,
    TAG_VERDICT,
)
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import (
    Candidate,
    CandidateKind,
    Champion,
    GateVerdict,
    HistoryEntry,
    StackRecord,
)
from retrieval_operator.domain.context import Context, cut
from retrieval_operator.domain.history import (
    entry_of_former,
    entry_of_promotion,
    entry_of_rollback,
    newest_part,
    promoted_records,
    record_of_champion,
    verdict_runs,
    with_entry,
)
from retrieval_operator.domain.observed import Observed
from retrieval_operator.domain.plan import Action, EmitEvent, SwitchTraffic, TagRun

# A champion that is not ready for this long while it bakes is rolled back: a restarted server is back within it on the
# machines this was tried on, a broken one is not. Gut feeling.
BAKE_GRACE_S = 30


@dataclass(frozen=True)
class RollbackRequest:
    """What a person asked for: `target` is the stack to return to, one that was live before."""

    target: StackRecord


def with_memory(model: RetrievalModel, observed: Observed) -> Observed:
    """The world with what only the status still knows of a traffic whose address was removed behind our back.

    Removed, the address says nothing; opened again, it says neither since when its stack is champion nor what was live
    before. So the champion that comes back is the one that it was: its return is no promotion, it bakes as long as it
    would have, and what a rollback left behind stays there. `live` stays as it was observed.
    """
    traffic, remembered = observed.traffic, model.status.champion
    if remembered is None or traffic.previous:
        return observed
    if traffic.live is None or _is_same(traffic.live, remembered):
        stack, since = remembered.stack, remembered.promoted_at
    else:
        stack, since = traffic.live.stack, traffic.switched_at
    previous = _live_before(model.status.history, observed, stack, since)
    return replace(observed, traffic=replace(traffic, previous=previous, switched_at=since))


def with_former(model: RetrievalModel, observed: Observed) -> RetrievalModel:
    """The object whose history knows the running stack that was live before, also when its status was lost.

    Otherwise the way back to it would look like its promotion, and what is left behind like what is still wanted.
    """
    traffic, history = observed.traffic, model.status.history
    former = observed.stacks.get(traffic.previous)
    if former is None or traffic.live is None or observed.registry is None:
        return model
    is_known = any(entry.record is not None and entry.record.stack == traffic.previous for entry in history)
    if is_known or len(history) >= HISTORY_MAX_ENTRIES:
        return model
    entry = entry_of_former(observed.registry, former.record, traffic.live, traffic.switched_at)
    return model.model_copy(update={"status": model.status.model_copy(update={"history": [*history, entry]})})


def _is_same(live: StackRecord, remembered: Champion | Candidate) -> bool:
    """Not a retraining that gave the same bundle and index, and so the same stack."""
    return (live.stack, live.revision) == (remembered.stack, remembered.revision)


def _live_before(history: list[HistoryEntry], observed: Observed, stack: str, since: int) -> str:
    """The stack that this one took over from, as the history has it; "" for none.

    That is the one that was left, after a rollback. Of several that it may have been, one that still runs.
    """
    left = [entry.record for entry in history if entry.outcome == "RolledBack" and entry.at == since]
    others = [record.stack for record in promoted_records(history) if record.stack != stack]
    former = [record.stack for record in left if record] or [name for name in others if former_is_kept(history, name)]
    return next((name for name in former if name in observed.stacks), next(iter(former), ""))


def champion_of(model: RetrievalModel, observed: Observed) -> Champion | None:
    """The live stack as a champion, or the one that lost its traffic; None before the first promotion."""
    traffic, status = observed.traffic, model.status
    live = traffic.live or (record_of_champion(status.champion) if status.champion else None)
    if live is None:
        return None
    gates, evaluation_run = _judged(model, live)
    window = model.spec.rollback.window_seconds if former_is_kept(status.history, traffic.previous) else 0
    return Champion(
        **{name: getattr(live, name) for name in StackRecord.model_fields},
        promoted_at=traffic.switched_at,
        token=f"{live.stack}@{traffic.switched_at}",
        baking_until=traffic.switched_at + window,
        gates=gates,
        evaluation_run=evaluation_run,
    )


def former_is_kept(history: list[HistoryEntry], previous: str) -> bool:
    """Whether the former stack is one to go back to: after a rollback it is the bad one, and goes at once.

    A way back to it that failed says nothing about that: the next one may find it well again.
    """
    told = (e for e in history if e.record is not None and e.outcome in ("Promoted", "RolledBack"))
    entry = next((entry for entry in told if entry.record is not None and entry.record.stack == previous), None)
    return bool(previous) and (entry is None or entry.outcome == "Promoted")


def _judged(model: RetrievalModel, live: StackRecord) -> tuple[list[GateVerdict], str]:
    """The verdict that let this stack in and the run that holds its evaluation; nothing for a wiped status."""
    status = model.status
    for holder in (status.champion, status.candidate):
        if holder is not None and _is_same(live, holder) and holder.gates:
            return holder.gates, holder.evaluation_run
    # A refresh is not judged by these gates; what let its revision in still holds.
    entry = next((e for e in status.history if _let_in(e, live)), None)
    return (entry.gates, entry.evaluation_run) if entry is not None else ([], "")


def _let_in(entry: HistoryEntry, live: StackRecord) -> bool:
    return bool(entry.gates) and entry.outcome == "Promoted" and entry.revision == live.revision


@dataclass(frozen=True)
class Settled:
    """History and candidate after looking at where the traffic went since the last status."""

    history: list[HistoryEntry]
    candidate: Candidate | None
    events: tuple[EmitEvent, ...] = ()


def settle(context: Context) -> Settled:
    """Record a promotion or a rollback that the traffic shows and the history does not yet.

    The candidate may not have been written to a status before the switch, or no status at all: what the live stack is
    compared with the former champion says enough.
    """
    status, champion, former = context.status, context.champion, context.status.champion
    if champion is None or _is_recorded(status.history, champion, former):
        return Settled(status.history, status.candidate)
    kind, new_id = newest_part(champion, former)
    reached = status.candidate is not None and (_names(status.candidate, champion) or status.candidate.id == new_id)
    history, events = status.history, tuple[EmitEvent, ...]()
    promoted_again = reached and status.candidate is not None and status.candidate.kind is not CandidateKind.ROLLBACK
    moved = former is not None and former.stack != champion.stack
    went_back = moved and not promoted_again and _was_promoted(history, champion)
    if former is not None and went_back:
        history, events = _rolled_back(context, former, champion)
    if reached or not went_back:
        by = "" if went_back or kind is not CandidateKind.REVISION else _approver(context, champion)
        history = with_entry(history, entry_of_promotion(champion, kind, new_id, by))
        message = cut(f"{_promotion_sentence(champion)}{by}")
        events = (*events, EmitEvent(type="Normal", reason=Reason.PROMOTED, message=message))
    return Settled(history, None if reached else status.candidate, events)


def _is_recorded(history: list[HistoryEntry], champion: Champion, former: Champion | None) -> bool:
    """Nothing moved since the last status, or the last status was lost but the history holds this promotion."""
    if former is not None:
        return _promotion(former) == _promotion(champion)
    return any(entry.at == champion.promoted_at and entry.outcome == "Promoted" for entry in history)


def _promotion(champion: Champion) -> tuple[str, str, str, int]:
    """A retraining, or a refresh, that gave the same bundle and index again leaves stack and moment as they were."""
    return champion.stack, champion.revision, champion.generation_key, champion.promoted_at


def _was_promoted(history: list[HistoryEntry], champion: Champion) -> bool:
    """Whether this stack was live before: then the traffic went back to it."""
    return any(
        entry.outcome == "Promoted" and entry.record is not None and entry.record.stack == champion.stack
        for entry in history
    )


def _names(candidate: Candidate, champion: Champion) -> bool:
    return bool(candidate.stack) and candidate.stack == champion.stack


def _promotion_sentence(champion: Champion) -> str:
    return (
        f"stack {champion.stack} (revision {champion.revision}, {champion.bundle_id}, {champion.generation_id}) is live"
    )


def _approver(context: Context, champion: Champion) -> str:
    """Who let this very stack in, as words for a sentence; "" when nobody was asked, or while the registry is away."""
    version = context.registry.versions.get(champion.bundle_id) if context.registry else None
    if version is None or not version.tags.get(TAG_AWAITING, "").startswith(f"{champion.stack}-"):
        return ""
    name = version.tags.get(TAG_APPROVED_BY, "")
    return f", approved by {name}" if name else ""


def _rolled_back(
    context: Context, former: Champion, live: Champion
) -> tuple[list[HistoryEntry], tuple[EmitEvent, ...]]:
    message = f"traffic went back from stack {former.stack} to {live.stack}{_why_it_went_back(context, former, live)}"
    entry = entry_of_rollback(former, live, message, live.promoted_at)
    event = EmitEvent(type="Warning", reason=Reason.ROLLED_BACK, message=entry.message)
    return with_entry(context.status.history, entry), (event,)


def _why_it_went_back(context: Context, former: Champion, live: Champion) -> str:
    """As words for a sentence. The pass that switches writes no history, so it is seen here: the stack is still there.

    "" when it serves and nobody asked: somebody moved the selector.
    """
    if context.model.metadata.annotations.get(ROLLBACK_ANNOTATION) == f"{former.token}:{live.stack}":
        return ", as was asked for"
    stack = context.observed.stacks.get(former.stack)
    if stack is None or stack.is_ready:
        return ""
    return f": its servers failed: {stack.failed}" if stack.failed else ": it had no ready server"


def requested_rollback(context: Context) -> RollbackRequest | None:
    """A person's request about the stack that is live now; one about another stack is an old one and does nothing."""
    value = context.model.metadata.annotations.get(ROLLBACK_ANNOTATION, "")
    live, _, target = value.partition(":")
    champion = context.champion
    if champion is None or live != champion.token or target == champion.stack:
        return None
    record = _former_record(context, target)
    return RollbackRequest(record) if record is not None else None


def _former_record(context: Context, stack: str) -> StackRecord | None:
    """A stack that was live before. No annotation may bring in one that never passed its gates and verification."""
    for entry in context.status.history:
        if entry.outcome == "Promoted" and entry.record is not None and entry.record.stack == stack:
            return entry.record
    running = context.observed.stacks.get(stack)
    return running.record if running is not None and stack == context.observed.traffic.previous else None


def rollback_actions(context: Context) -> tuple[Action, ...]:
    """Switch back now: asked for and the target runs, or a bake check failed and the former stack runs.

    A request whose target is still being made ready, or cannot be, keeps nobody from the stack that runs.
    """
    champion = context.champion
    if champion is None:
        return ()
    request = requested_rollback(context)
    if request is not None:
        stack = context.observed.stacks.get(request.target.stack)
        if stack is not None and stack.is_ready:
            return _switch_back(context, champion, request.target, "asked for")
    if not context.spec.rollback.automatic or context.now >= champion.baking_until:
        return ()
    previous = context.observed.traffic.previous
    former, record = context.observed.stacks.get(previous), _former_record(context, previous)
    found = failed_bake_check(context, champion)
    return _switch_back(context, champion, record, found) if found and record and former and former.is_ready else ()


def _switch_back(context: Context, champion: Champion, record: StackRecord, why: str) -> tuple[Action, ...]:
    """Traffic first: the registry may be away, and clients matter more than the record.

    Under the record that it had when it was live, which may be a later one than the stack's own (`regained_traffic`).
    """
    message = f"going back from stack {champion.stack} to {record.stack}: {why}"
    switch = SwitchTraffic(record=record, observed_version=context.observed.traffic.version)
    event = EmitEvent(type="Warning", reason=Reason.ROLLED_BACK, message=message, of_action=True)
    entry = entry_of_rollback(champion, record, message, context.now)
    runs = verdict_runs(context.registry, entry.kind, entry.id)
    return (switch, event, *(TagRun(run_id=run.run_id, tags={TAG_VERDICT: "RolledBack"}) for run in runs))


def regained_traffic(context: Context) -> tuple[Action, ...]:
    """Nothing points at the champion any more: point at it again, and make an address anew once its stack can answer.

    An address that is there and leads nowhere serves nobody as it is, so it waits for nothing. Under the record that
    the traffic had: a retraining that gave the same stack has moved it on from the stack's own.
    """
    champion, traffic = context.champion, context.observed.traffic
    if champion is None or traffic.live is not None:
        return ()
    stack = context.observed.stacks.get(champion.stack)
    if stack is None or not stack.complete or not (stack.is_ready or traffic.address):
        return ()  # it is kept, or made again, by `upkeep`
    what = "led nowhere" if traffic.address else "was gone"
    message = f"the object's stable address {what}: traffic goes to stack {champion.stack} again"
    switch = SwitchTraffic(record=record_of_champion(champion), observed_version=traffic.version)
    return (switch, EmitEvent(type="Warning", reason=Reason.STACK_REPAIRED, message=message, of_action=True))


def failed_bake_check(context: Context, champion: Champion) -> str:
    """What is wrong with a baking champion, in a sentence; "" when nothing is."""
    if not context.spec.rollback.checks:
        return ""
    stack = context.observed.stacks.get(champion.stack)
    if stack is not None and stack.failed:
        return f"its servers failed: {stack.failed}"
    if (stack is not None and stack.is_ready) or context.observed.traffic.live is None:
        return ""  # that its address is gone is not the champion's fault
    since = _not_ready_since(context)
    if since is not None and context.now - since >= BAKE_GRACE_S:
        return f"not ready for {context.now - since} s"
    return ""


def _not_ready_since(context: Context) -> int | None:
    """When the Ready condition became False under this champion; None when it did not yet."""
    for condition in context.status.conditions:
        if condition.type is ConditionType.READY and condition.status == "False":
            return condition.last_transition_time
    return None

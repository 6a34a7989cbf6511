"""How candidates ended, and what that refuses.

A revision, refresh or stack that was refused is not tried again until a person asks (`retry`). The history says so,
and so do verdict tags in the registry, so that a wiped status neither retrains nor promotes again.
"""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES, TAG_RETRY, TAG_VERDICT
from retrieval_operator.api.status import CandidateKind, Champion, HistoryEntry, StackRecord
from retrieval_operator.domain.context import Context, Ended, cut
from retrieval_operator.domain.identity import verification_key

REFUSING = frozenset({"Rejected", "Inconclusive", "Failed", "RolledBack"})


def newest(history: list[HistoryEntry], candidate_id: str) -> HistoryEntry | None:
    return next((entry for entry in history if entry.id == candidate_id), None)


def run_key(kind: CandidateKind, candidate_id: str) -> str:
    """The run whose verdict tag speaks for a candidate, as `step:key`."""
    match kind:
        case CandidateKind.REFRESH:
            return f"index:{candidate_id}"
        case CandidateKind.SERVING | CandidateKind.ROLLBACK:
            return f"verify:{verification_key(candidate_id, '')}"
        case _:
            return f"train:{candidate_id}"


def refusal(context: Context, kind: CandidateKind, candidate_id: str) -> str:
    """Why this may not be tried (a sentence), or "" when it may."""
    entry = newest(context.status.history, candidate_id)
    if entry is not None:
        refused = entry.outcome in REFUSING and not entry.retried
        return f"{entry.outcome}: {entry.message}" if refused else ""
    run = context.registry.runs.get(run_key(kind, candidate_id)) if context.registry else None
    verdict = run.tags.get(TAG_VERDICT, "") if run else ""
    return f"{verdict}, says the registry's tag {TAG_VERDICT}" if verdict in REFUSING else ""


def retry_was_handled(context: Context, token: str) -> bool:
    """A retry is acted on once: the status remembers it, and so does a tag in case the status is wiped."""
    if context.status.handled_retry == token:
        return True
    registry = context.registry
    return registry is not None and any(run.tags.get(TAG_RETRY) == token for run in registry.runs.values())


def with_entry(history: list[HistoryEntry], entry: HistoryEntry) -> list[HistoryEntry]:
    """Newest first, at most 10; a second entry about the same event replaces the first.

    The two newest promotions stay however many refusals follow them: they are what traffic can go back to.
    """
    rest = [old for old in history if (old.id, old.outcome, old.at) != (entry.id, entry.outcome, entry.at)]
    entries = [entry, *rest]
    promotions = [old for old in entries if old.outcome == "Promoted"][:2]
    while len(entries) > HISTORY_MAX_ENTRIES:
        entries.remove(next(old for old in reversed(entries) if old not in promotions))
    return entries


def entry_of_end(ended: Ended, now: int) -> HistoryEntry:
    candidate = ended.candidate
    return HistoryEntry(
        id=candidate.id,
        kind=candidate.kind,
        revision=candidate.revision,
        outcome=ended.outcome,
        reason=ended.reason,
        message=cut(ended.message),
        at=now,
        gates=candidate.gates,
        evaluation_run=candidate.evaluation_run,
        step=candidate.step,
        record=ended.record,
    )


def entry_of_promotion(champion: Champion, kind: CandidateKind, candidate_id: str) -> HistoryEntry:
    return HistoryEntry(
        id=candidate_id,
        kind=kind,
        revision=champion.revision,
        outcome="Promoted",
        reason=Reason.PROMOTED,
        message=f"stack {champion.stack} is live",
        at=champion.promoted_at,
        gates=champion.gates,
        evaluation_run=champion.evaluation_run,
        record=record_of_champion(champion),
    )


def newest_part(stack: StackRecord, other: StackRecord | None) -> tuple[CandidateKind, str]:
    """What is new about a stack beside another one: its revision, its generation or its serving, with that id."""
    if other is None or stack.revision != other.revision:
        return CandidateKind.REVISION, stack.revision
    if stack.generation_key != other.generation_key:
        return CandidateKind.REFRESH, stack.generation_key
    return CandidateKind.SERVING, stack.stack


def entry_of_rollback(former: Champion, now_live: StackRecord, message: str, at: int) -> HistoryEntry:
    """What was rolled back is the newest part of the former stack."""
    kind, candidate_id = newest_part(former, now_live)
    return HistoryEntry(
        id=candidate_id,
        kind=kind,
        revision=former.revision,
        outcome="RolledBack",
        reason=Reason.ROLLED_BACK,
        message=cut(message),
        at=at,
        gates=former.gates,
        evaluation_run=former.evaluation_run,
        record=record_of_champion(former),
    )


def record_of_champion(champion: Champion) -> StackRecord:
    return StackRecord.model_validate({name: getattr(champion, name) for name in StackRecord.model_fields})

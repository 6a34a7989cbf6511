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
    """Newest first, at most 10; a second entry about the same event replaces the first."""
    rest = [old for old in history if (old.id, old.outcome, old.at) != (entry.id, entry.outcome, entry.at)]
    return [entry, *rest][:HISTORY_MAX_ENTRIES]


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


def entry_of_rollback(former: Champion, now_live: StackRecord, message: str, at: int) -> HistoryEntry:
    """What was rolled back is the newest thing about the former stack: its revision, its generation or its serving."""
    if former.revision != now_live.revision:
        kind, candidate_id = CandidateKind.REVISION, former.revision
    elif former.generation_key != now_live.generation_key:
        kind, candidate_id = CandidateKind.REFRESH, former.generation_key
    else:
        kind, candidate_id = CandidateKind.SERVING, former.stack
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

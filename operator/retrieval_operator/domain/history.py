"""How candidates ended, and what that refuses.

A revision, refresh or stack that was refused is not tried again until a person asks (`retry`). The history says so,
and so do verdict tags in the registry, so that a wiped status neither retrains nor promotes again.
"""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import (
    HISTORY_MAX_ENTRIES,
    LEFT_STACKS_MAX,
    REVISION_HISTORY_MAX,
    TAG_PROMOTED_AT,
    TAG_RETRY,
    TAG_STACK,
    TAG_VERDICT,
)
from retrieval_operator.api.status import CandidateKind, Champion, HistoryEntry, StackRecord
from retrieval_operator.domain.context import Context, Ended, cut
from retrieval_operator.domain.observed import RegistryObserved, RunObserved

REFUSING = frozenset({"Rejected", "Inconclusive", "Failed", "RolledBack"})


def newest(history: list[HistoryEntry], candidate_id: str) -> HistoryEntry | None:
    """The newest verdict about it; that something else was asked for meanwhile (Superseded) is none."""
    return next((entry for entry in history if entry.id == candidate_id and entry.outcome != "Superseded"), None)


def verdict_runs(registry: RegistryObserved | None, kind: CandidateKind, candidate_id: str) -> list[RunObserved]:
    """The runs whose verdict tags speak for a candidate: its training, its index build, or its verifications."""
    if registry is None:
        return []
    if kind in (CandidateKind.SERVING, CandidateKind.ROLLBACK):
        return [
            run for run in registry.runs.values() if run.step == "verify" and run.tags.get(TAG_STACK) == candidate_id
        ]
    step = "index" if kind is CandidateKind.REFRESH else "train"
    run = registry.runs.get(f"{step}:{candidate_id}")
    return [run] if run is not None else []


def promoted_at(run: RunObserved) -> int:
    """When a stack with its files was promoted last, in seconds since the epoch, as its tag has it; 0 for never."""
    text = run.tags.get(TAG_PROMOTED_AT, "")
    return int(text) if text.isdecimal() else 0


def refusal(context: Context, kind: CandidateKind, candidate_id: str) -> str:
    """Why this may not be tried (a sentence), or "" when it may."""
    entry = newest(context.status.history, candidate_id)
    if entry is not None:
        refused = entry.outcome in REFUSING and not entry.retried
        return f"{entry.outcome}: {entry.message}" if refused else ""
    verdict = tagged_verdict(context, kind, candidate_id)
    return f"{verdict}, says the registry's tag {TAG_VERDICT}" if verdict in REFUSING else ""


def tagged_verdict(context: Context, kind: CandidateKind, candidate_id: str) -> str:
    """The verdict that the registry remembers, "" for none."""
    verdicts = [run.tags.get(TAG_VERDICT, "") for run in verdict_runs(context.registry, kind, candidate_id)]
    return next((verdict for verdict in verdicts if verdict), "")


def is_unknown(context: Context, candidate_id: str) -> bool:
    """Neither the history nor the registry can say whether this was refused: then nothing is begun."""
    return context.registry is None and newest(context.status.history, candidate_id) is None


def retry_was_handled(context: Context, token: str) -> bool:
    """A retry is acted on once: the status remembers it, and so does a tag in case the status is wiped."""
    if context.status.handled_retry == token:
        return True
    registry = context.registry
    return registry is not None and any(run.tags.get(TAG_RETRY) == token for run in registry.runs.values())


def retry_of(context: Context, history: list[HistoryEntry], kind: CandidateKind, candidate_id: str) -> str:
    """The retry that a person asked for after this had ended, "" for none: what was measured before does not count."""
    entry = newest(history, candidate_id)
    if entry is not None and entry.retried:
        return context.handled_retry
    tags = [run.tags.get(TAG_RETRY, "") for run in verdict_runs(context.registry, kind, candidate_id)]
    return next((token for token in tags if token), "")


def with_entry(history: list[HistoryEntry], entry: HistoryEntry) -> list[HistoryEntry]:
    """Newest first, at most HISTORY_MAX_ENTRIES; a second entry about the same event replaces the first.

    However much follows them, some stay. The newest promotions of as many stacks as have their record: they are what
    traffic can go back to. The newest that was judged by gates: refreshes are not. And what was
    gone back from since, with the way back that failed last: it would begin again by itself, were that forgotten.
    """
    entries = [entry, *(old for old in history if not _is_replaced(old, entry))]
    promotions = [old for old in entries if old.outcome == "Promoted"]
    judged = [old for old in promotions if old.gates and old.kind is CandidateKind.REVISION][:1]
    newest_of: dict[str, HistoryEntry] = {}
    for old in promotions:
        if old.record is not None:
            newest_of.setdefault(old.record.stack, old)
    staying = [*list(newest_of.values())[: REVISION_HISTORY_MAX + 1], *judged, *_left_since(entries)]
    while len(entries) > HISTORY_MAX_ENTRIES:
        entries.remove(next(old for old in reversed(entries) if old not in staying))
    return entries


def _left_since(entries: list[HistoryEntry]) -> list[HistoryEntry]:
    """Since the newest promotion that was no way back: the stacks that were left, and the way back that failed last."""
    ways_back = {entry.at for entry in entries if entry.outcome == "RolledBack"}
    since = max((e.at for e in entries if e.outcome == "Promoted" and e.at not in ways_back), default=0)
    refused = [e for e in entries if e.at >= since and e.outcome in REFUSING and not e.retried]
    left = [entry for entry in refused if entry.outcome == "RolledBack"]
    failed = [entry for entry in refused if entry.kind is CandidateKind.ROLLBACK]
    return [*left[:LEFT_STACKS_MAX], *failed[:1]]


def _is_replaced(old: HistoryEntry, new: HistoryEntry) -> bool:
    """The same event; or a refresh that gave the same index as the one before, under the promotion of then."""
    if (old.id, old.outcome, old.at) == (new.id, new.outcome, new.at):
        return True
    is_refresh = (old.kind, old.outcome) == (new.kind, new.outcome) == (CandidateKind.REFRESH, "Promoted")
    is_same_stack = old.record is not None and new.record is not None and old.record.stack == new.record.stack
    return is_refresh and is_same_stack and old.at == new.at


def without_old_stacks(context: Context, history: list[HistoryEntry]) -> list[HistoryEntry]:
    """The history as it is kept: stacks beyond spec.revisionHistoryLimit lose their record, and never serve again.

    What runs, and what was live before, stays; of a stack under several records, since trainings or refreshes found
    nothing new, the newest. A record that is gone from the written status is what lets the files of its stack go
    (`retention`): never before, so that a stack that traffic may go back to has its files.
    """
    champion = context.champion
    if champion is None:
        return history
    former = dict.fromkeys(record.stack for record in promoted_records(history) if record.stack != champion.stack)
    staying = {champion.stack, context.observed.traffic.previous, *context.observed.stacks}
    staying.update(list(former)[: context.spec.revision_history_limit])
    kept = []
    for entry in history:
        if entry.outcome == "Promoted" and entry.record is not None:
            is_kept = entry.record.stack in staying
            staying.discard(entry.record.stack)
            kept.append(entry if is_kept else entry.model_copy(update={"record": None}))
        else:
            kept.append(entry)
    return kept


def promoted_records(history: list[HistoryEntry]) -> list[StackRecord]:
    """The stacks that traffic can go back to (the champion's own among them), the newest promotion first."""
    return [entry.record for entry in history if entry.outcome == "Promoted" and entry.record is not None]


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


def entry_of_tag(context: Context, kind: CandidateKind, candidate_id: str, revision: str) -> HistoryEntry:
    """A refusal that only the registry remembers, taken into the history as one that a person has lifted."""
    verdict = tagged_verdict(context, kind, candidate_id)
    return HistoryEntry(
        id=candidate_id,
        kind=kind,
        revision=revision,
        outcome="Failed",
        reason=Reason.ALREADY_REFUSED,
        message=f"the registry remembers {verdict}; a retry was asked for",
        at=context.now,
        retried=True,
    )


def entry_of_promotion(champion: Champion, kind: CandidateKind, candidate_id: str, approved: str = "") -> HistoryEntry:
    """`approved` says by whom, as the end of a sentence; "" for nobody."""
    return HistoryEntry(
        id=candidate_id,
        kind=kind,
        revision=champion.revision,
        outcome="Promoted",
        reason=Reason.PROMOTED,
        message=cut(f"stack {champion.stack} is live{approved}"),
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


def entry_of_former(
    registry: RegistryObserved, former: StackRecord, live: StackRecord, switched_at: int
) -> HistoryEntry:
    """What a lost history had of the stack that was live before `live`, as far as the registry's tags remember it."""
    kind, candidate_id = newest_part(former, live)
    runs = verdict_runs(registry, kind, candidate_id)
    was_left = any(run.tags.get(TAG_VERDICT) == "RolledBack" for run in runs)
    before = max((promoted_at(run) for run in runs), default=0) or switched_at - 1
    return HistoryEntry(
        id=candidate_id,
        kind=kind,
        revision=former.revision,
        outcome="RolledBack" if was_left else "Promoted",
        reason=Reason.ROLLED_BACK if was_left else Reason.PROMOTED,
        message=f"stack {former.stack} was live before stack {live.stack}",
        at=switched_at if was_left else min(before, switched_at - 1),
        record=former,
    )


def record_of_champion(champion: Champion) -> StackRecord:
    return StackRecord.model_validate({name: getattr(champion, name) for name in StackRecord.model_fields})

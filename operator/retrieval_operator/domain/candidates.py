"""Which one piece of work should be in flight: at most one, and a newer wish supersedes an older one."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_operator.api.constants import RETRAIN_ANNOTATION, RETRY_ANNOTATION, TAG_SLOT
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import Candidate, CandidateKind, Champion, HistoryEntry, StackRecord
from retrieval_operator.domain.champion import requested_rollback
from retrieval_operator.domain.context import Context
from retrieval_operator.domain.history import REFUSING, is_unknown, newest, refusal, retry_of, retry_was_handled
from retrieval_operator.domain.identity import generation_key, revision_hash, serving_hash, stack_id
from retrieval_operator.domain.schedule import due_slot, slot_time


@dataclass(frozen=True)
class Wanted:
    """Work that this object asks for now. `refused` holds why it may not start, "" when it may."""

    kind: CandidateKind
    id: str
    revision: str
    slot: str = ""
    refresh_slot: str = ""
    scheduled: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Slots:
    """Schedule slots taken up: the newest of each schedule."""

    training: str
    refresh: str


def slots(context: Context, *, may_advance: bool) -> Slots:
    """Slots that count now. New ones are taken only while nothing is in flight and the object is not suspended."""
    champion, status, spec = context.champion, context.status, context.spec
    training = max([status.training_slot, *_recorded_slots(context)])
    refresh = max(status.refresh_slot, champion.refresh_slot if champion else "")
    if not may_advance:
        return Slots(training, refresh)
    # A wiped status without slots must not take up what is long past: nothing before the last promotion counts.
    floor = max(
        context.model.metadata.creation_timestamp,
        champion.promoted_at if champion and not status.observed_generation else 0,
    )
    new_training = _due(context, spec.data.schedule, max(floor, slot_time(training)))
    new_refresh = _due(context, spec.index.refresh.schedule, max(floor, slot_time(refresh))) if champion else ""
    return Slots(new_training or training, new_refresh or refresh)


def _recorded_slots(context: Context) -> list[str]:
    """Training slots that the champion and the registry's runs remember, whatever became of the status."""
    runs = context.registry.runs.values() if context.registry else ()
    slots = [run.tags.get(TAG_SLOT, "") for run in runs] + [context.champion.slot if context.champion else ""]
    return [slot.partition("#")[0] for slot in slots]


def _due(context: Context, expression: str | None, after: int) -> str:
    if expression is None:
        return ""
    data = context.spec.data
    return due_slot(
        expression,
        data.time_zone,
        after=after,  # of a clock that was ahead: until then no slot is due
        now=context.now,
        starting_deadline_s=data.starting_deadline_seconds,
    )


def training_slot(context: Context, cron: str) -> str:
    """The slot that enters the revision: cron time and manual counter, joined by "#" when there is a counter."""
    counter = context.model.metadata.annotations.get(RETRAIN_ANNOTATION, "")
    return f"{cron}#{counter}" if counter else cron


def wanted(context: Context, taken: Slots) -> Wanted | None:
    """What should be in flight, the most costly kind first; None when all is as it should be (or asks are refused).

    A refused wish is returned with its refusal only when nothing else is wanted, for the conditions to say so.
    """
    wishes = _wishes(context, taken)
    return next((wish for wish in wishes if not wish.refused), next(iter(wishes), None))


def only_schedules_ask(context: Context, taken: Slots) -> bool:
    """Whatever may begin comes with a slot, so nobody waits for it by the minute. What an edit asks for was refused."""
    return all(wish.scheduled for wish in _wishes(context, taken) if not wish.refused)


def _wishes(context: Context, taken: Slots) -> list[Wanted]:
    asked = (
        _wanted_rollback(context),
        _wanted_revision(context, taken),
        _wanted_refresh(context, taken),
        _wanted_serving(context, taken),
    )
    return [wish for wish in asked if wish is not None]


def _wanted_rollback(context: Context) -> Wanted | None:
    """A former stack that has to be made ready first; one that is ready is switched to at once (`champion`)."""
    request = requested_rollback(context)
    if request is None:
        return None
    target = request.target
    return Wanted(CandidateKind.ROLLBACK, target.stack, target.revision, refused=_failed_rollback(context, target))


def _failed_rollback(context: Context, target: StackRecord) -> str:
    """Why going back to this stack from the present champion is not tried again (a sentence), "" when it may be."""
    champion = context.champion
    ended = [e for e in context.status.history if e.kind is CandidateKind.ROLLBACK and e.id == target.stack]
    entry = next((entry for entry in ended if entry.outcome in REFUSING and not entry.retried), None)
    if entry is None or champion is None or entry.at < champion.promoted_at:
        return ""
    return f"{entry.outcome}: {entry.message}"


def _wanted_revision(context: Context, taken: Slots) -> Wanted | None:
    champion, slot = context.champion, training_slot(context, taken.training)
    revision = revision_hash(context.spec, slot)
    if champion is not None and champion.revision == revision:
        return None
    kind = CandidateKind.REVISION
    return Wanted(
        kind,
        revision,
        revision,
        slot,
        taken.refresh,
        scheduled=champion is not None and asks_for_revision(context, champion),
        refused=refusal(context, kind, revision),
    )


def asks_for_revision(context: Context, champion: Champion) -> bool:
    """Whether spec and annotations ask for the champion's revision: whatever else is wanted then, a schedule asked."""
    cron_slot = champion.slot.partition("#")[0]
    return champion.revision == revision_hash(context.spec, training_slot(context, cron_slot))


def asks_for_generation(context: Context, champion: Champion) -> bool:
    """Whether the spec asks for the champion's index generation: whatever else is wanted then, a schedule asked."""
    return champion.generation_key == generation_of(context, champion, champion.refresh_slot)


def _wanted_refresh(context: Context, taken: Slots) -> Wanted | None:
    champion = context.champion
    if champion is None:
        return None
    key = generation_of(context, champion, taken.refresh)
    if champion.generation_key == key:
        return None
    kind = CandidateKind.REFRESH
    return Wanted(
        kind,
        key,
        champion.revision,
        champion.slot,
        taken.refresh,
        scheduled=asks_for_generation(context, champion),
        refused=refusal(context, kind, key) or _left_behind(context, taken, kind),
    )


def _wanted_serving(context: Context, taken: Slots) -> Wanted | None:
    champion = context.champion
    if champion is None or champion.serving_hash == serving_hash(context.spec):
        return None
    stack = stack_id(champion.bundle_id, champion.generation_id, serving_hash(context.spec))
    kind = CandidateKind.SERVING
    return Wanted(
        kind,
        stack,
        champion.revision,
        champion.slot,
        champion.refresh_slot,
        refused=refusal(context, kind, stack) or _left_behind(context, taken, kind),
    )


def _left_behind(context: Context, taken: Slots, kind: CandidateKind) -> str:
    """Why this is not tried under a champion that traffic went back to (a sentence): a stack that was left had it.

    Whoever goes back wants that former stack, not its model with the index or the serving spec that may be to blame.
    "" once the manifest, a schedule or a retry asks for something else.
    """
    left = [e for e in context.status.history if e.outcome == "RolledBack" and not e.retried]
    if context.champion is None or all(entry.at != context.champion.promoted_at for entry in left):
        return ""
    entry = next((entry for entry in left if _asks_for_the_same(context, taken, kind, entry.record)), None)
    return f"{entry.outcome}: {entry.message}" if entry is not None else ""


def _asks_for_the_same(context: Context, taken: Slots, kind: CandidateKind, record: StackRecord | None) -> bool:
    """Whether the manifest still wants the serving spec, or the index, of this stack."""
    if record is None:
        return False
    if kind is CandidateKind.SERVING:
        return record.serving_hash == serving_hash(context.spec)
    return record.generation_key == generation_of(context, record, taken.refresh)


def generation_of(context: Context, holder: StackRecord | Champion | Candidate, refresh_slot: str) -> str:
    """The key of the serving index that the manifest wants of this bundle."""
    return generation_key(context.spec, holder.bundle_id, holder.revision, refresh_slot)


def may_begin(context: Context, wish: Wanted) -> bool:
    """Not what was refused, and not before it is known whether it was refused.

    Nor while suspended, or while something is missing that the work needs; a way back is tried all the same.
    """
    if wish.kind is CandidateKind.ROLLBACK:
        return not wish.refused
    return not (wish.refused or context.spec.suspend or context.missing or is_unknown(context, wish.id))


def may_begin_by_itself(context: Context, wish: Wanted) -> bool:
    """Whether it only waits for something that nothing tells us of: MLflow, a claim, a name that somebody else has."""
    return not (wish.refused or context.spec.suspend) and (context.registry is None or bool(context.missing))


def rests(spec: RetrievalModelSpec, candidate: Candidate | None) -> bool:
    """Whether `suspend` holds all work. It never holds back a person's way to a former stack."""
    return spec.suspend and (candidate is None or candidate.kind is not CandidateKind.ROLLBACK)


def is_still_wanted(context: Context, candidate: Candidate, wish: Wanted | None) -> bool:
    """Whether the candidate in flight is what this object asks for now (slots did not advance meanwhile)."""
    return wish is not None and not wish.refused and (wish.kind, wish.id) == (candidate.kind, candidate.id)


def new_candidate(context: Context, wish: Wanted, history: list[HistoryEntry]) -> Candidate:
    """The wish as a candidate at its beginning."""
    champion = context.champion
    serves_champion = wish.kind in (CandidateKind.REFRESH, CandidateKind.SERVING) and champion is not None
    entry = newest(history, wish.id)
    return Candidate(
        id=wish.id,
        kind=wish.kind,
        revision=wish.revision,
        slot=wish.slot,
        refresh_slot=wish.refresh_slot,
        scheduled=wish.scheduled,
        generation=context.model.metadata.generation,
        started_at=context.now,
        step_started_at=context.now,
        data_uri=_data_uri(context, wish.kind),
        bundle_id=champion.bundle_id if champion and serves_champion else "",
        bundle_uri=champion.bundle_uri if champion and serves_champion else "",
        model_version=champion.model_version if champion and serves_champion else "",
        stack=wish.id if wish.kind in (CandidateKind.SERVING, CandidateKind.ROLLBACK) else "",
        retry=retry_of(context, history, wish.kind, wish.id),
        ignored_attempts=highest_attempts(context) if entry is not None and entry.retried else {},
    )


def _data_uri(context: Context, kind: CandidateKind) -> str:
    """Where the candidate's data are: where the manifest says.

    Not of a refresh while the manifest asks for another revision than the champion's, which was refused, or gone back
    from: its data serve nobody, under whatever model.
    """
    champion = context.champion
    if kind is CandidateKind.REFRESH and champion is not None and not asks_for_revision(context, champion):
        return champion.data_uri
    return context.spec.data.uri


def highest_attempts(context: Context) -> dict[str, int]:
    highest: dict[str, int] = {}
    for workload in context.observed.workloads:
        highest[workload.piece] = max(workload.attempt, highest.get(workload.piece, 0))
    return highest


def new_retry(context: Context) -> str:
    """The token of a retry that was not acted on yet, "" for none."""
    token = context.model.metadata.annotations.get(RETRY_ANNOTATION, "")
    return token if token and not retry_was_handled(context, token) else ""

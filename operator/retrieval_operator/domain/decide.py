"""decide(): what to do now, from the object, the observed world and the time. Pure; see ARCHITECTURE.md.

One pass, in this order:
1. an object being deleted is taken down;
2. the traffic says who is champion; what it shows and the status does not know yet is recorded (`champion.settle`);
   of a champion that lost its traffic the status knows, and its stack is given the traffic back;
3. going back comes before going forward, and before the repair of what is left: a rollback that is due is all that
   this pass decides;
4. at most one candidate is in flight: superseded, kept, or newly begun (`candidates`);
5. the candidate walks its milestones up to the first that is not passed (`milestones`);
6. the champion is kept up, what is over is collected, projections are compared (`upkeep`), and when nothing else is
   to do, files that nothing refers to any more are removed (`collection`);
7. conditions and the phase say what was found.

No state but what is observed is needed: with an empty status the same pass reaches the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Candidate, HistoryEntry, RetrievalModelStatus, Step
from retrieval_operator.domain import candidates, collection, proofs, upkeep
from retrieval_operator.domain.champion import (
    champion_of,
    regained_traffic,
    rollback_actions,
    settle,
    with_former,
    with_memory,
)
from retrieval_operator.domain.changes import immutable_fields
from retrieval_operator.domain.conditions import Found, conditions, not_begun, phase
from retrieval_operator.domain.context import Context, Ended, Passed, Waiting, cut, failed, with_facts
from retrieval_operator.domain.deletion import decide_deletion, finalizer
from retrieval_operator.domain.history import entry_of_end, entry_of_tag, newest, with_entry, without_old_stacks
from retrieval_operator.domain.milestones import MILESTONES
from retrieval_operator.domain.milestones.work import held_back
from retrieval_operator.domain.observed import Observed
from retrieval_operator.domain.plan import Action, EmitEvent, Plan, SwitchTraffic
from retrieval_operator.domain.run_states import run_images, run_states
from retrieval_operator.domain.schedule import next_slot_at
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep

# Longer than a server or program takes to start again on the machines this was tried on (30 s under load). Gut feeling.
_OVERDUE_GRACE_S = 120
# Watches wake the queue; this is the safety net while something is in flight.
_IN_FLIGHT_REQUEUE_S = 15.0
# How soon an object that has nothing else to do looks whether its trouble is over: nothing tells of a claim, nor of
# MLflow. Nobody waits for it but people who look at its conditions. A gut feeling.
_IN_TROUBLE_REQUEUE_S = 60.0


def decide(model: RetrievalModel, observed: Observed, now: int) -> Plan:
    """The actions of this pass, in order, and the status to write. `now` in seconds since the epoch."""
    observed, noted = proofs.holding(with_memory(model, observed))
    model = with_former(model, observed)
    context = Context(model, observed, now, champion_of(model, observed))
    if model.metadata.deletion_timestamp is not None:
        return decide_deletion(context)
    settled = settle(context)
    done = _Pass(settled.history, settled.candidate, actions=(*noted, *settled.events))
    back = rollback_actions(context)
    if back:
        return _plan(context, replace(done, back=back), why="going back to the former stack")
    done = replace(done, back=regained_traffic(context))
    changed = _immutable_problem(context)
    if changed is not None:
        return _plan(context, done, stalled=changed)
    return _forward(context, done)


@dataclass(frozen=True)
class _Pass:
    """What a pass has found out so far.

    `back` moves the traffic to a stack that had it before, the former one or that of a champion who lost it; empty when
    that is not due. `files_first`: the wish may begin, once the files that nothing needs are gone.
    """

    history: list[HistoryEntry]
    candidate: Candidate | None
    back: tuple[Action, ...] = ()
    wish: candidates.Wanted | None = None
    files_first: bool = False
    actions: tuple[Action, ...] = ()
    slots: candidates.Slots | None = None
    retry: str = ""
    requeue_after_s: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Nothing is in flight, and nothing may begin."""
        return self.candidate is None and (self.wish is None or bool(self.wish.refused) or self.files_first)

    def having(self, *actions: Action) -> _Pass:
        return replace(self, actions=(*self.actions, *actions))


def _forward(context: Context, done: _Pass) -> Plan:
    """Steps 4 to 6: choose the candidate, let it walk, keep house."""
    done = _retried(context, done)
    context = _with_history(context, done.history, done.retry)
    done = _chosen(context, done)
    if done.candidate is None:
        return _plan(context, done)
    if candidates.rests(context.spec, done.candidate):
        since = done.candidate.blocked_since or context.now
        resting = with_facts(done.candidate, blocked_since=since, message="suspended: no new work is started")
        return _plan(context, replace(done, candidate=resting))
    if collection.is_in_the_way(context):
        waiting = with_facts(done.candidate, message="waiting for the removal of old files to stop")
        return _plan(context, replace(done, candidate=waiting, requeue_after_s=_IN_FLIGHT_REQUEUE_S))
    return _plan(context, _advanced(context, done, done.candidate))


def _retried(context: Context, done: _Pass) -> _Pass:
    """A person's new retry: refusals are lifted, attempts so far do not count."""
    token = candidates.new_retry(context)
    if not token:
        return done
    history = [entry.model_copy(update={"retried": True}) if _refuses(entry) else entry for entry in done.history]
    candidate = done.candidate
    if candidate is not None:
        ignored = candidates.highest_attempts(context)
        fresh = {"step_started_at": context.now, "blocked_since": None, "overdue_since": None}
        candidate = with_facts(candidate, ignored_attempts=ignored, **fresh)
    else:
        wish = candidates.wanted(context, candidates.slots(context, may_advance=False))
        if wish is not None and wish.refused and newest(history, wish.id) is None:
            history = with_entry(history, entry_of_tag(context, wish.kind, wish.id, wish.revision))
    return replace(done, history=history, candidate=candidate, retry=token)


def _refuses(entry: HistoryEntry) -> bool:
    return entry.outcome not in ("Promoted", "Superseded")


def _with_history(context: Context, history: list[HistoryEntry], retry: str = "") -> Context:
    """The rest of the pass sees the history, and the retry that is acted on, as they stand now."""
    handled = retry or context.status.handled_retry
    status = context.status.model_copy(update={"history": history, "handled_retry": handled})
    return Context(context.model.model_copy(update={"status": status}), context.observed, context.now, context.champion)


def _chosen(context: Context, done: _Pass) -> _Pass:
    """At most one candidate: what is in flight and still wanted goes on; else it is superseded and the wish begins."""
    idle = done.candidate is None and not context.spec.suspend
    taken = candidates.slots(context, may_advance=idle)
    wish = candidates.wanted(context, taken)
    candidate, history, actions = done.candidate, done.history, done.actions
    if candidate is not None and not candidates.is_still_wanted(context, candidate, wish):
        message = f"{candidate.kind} {candidate.id} is no longer what the object asks for"
        ended = Ended("Superseded", Reason.SUPERSEDED, message, candidate)
        history = with_entry(history, entry_of_end(ended, context.now))
        actions = (*actions, EmitEvent(type="Normal", reason=Reason.SUPERSEDED, message=message))
        candidate = None
    files_first = False
    if candidate is None and wish is not None and candidates.may_begin(context, wish):
        files_first = candidates.only_schedules_ask(context, taken) and collection.is_due(context, history, wish)
        candidate = None if files_first else candidates.new_candidate(context, wish, history)
    waits = wish if candidate is None else None
    looks_again = waits is not None and (files_first or candidates.may_begin_by_itself(context, waits))
    return replace(
        done,
        history=history,
        candidate=candidate,
        wish=waits,
        files_first=files_first,
        actions=actions,
        slots=taken,
        requeue_after_s=_IN_FLIGHT_REQUEUE_S if looks_again else None,
    )


def _advanced(context: Context, done: _Pass, candidate: Candidate) -> _Pass:
    """Let the candidate walk its milestones; keep its step, its clock and its message."""
    outcome = _walk(context, candidate)
    if isinstance(outcome, Waiting):
        outcome = _where_it_was(candidate, outcome)
        outcome = _within_deadline(context, candidate, held_back(context, candidate, outcome))
    if isinstance(outcome, Ended):
        return _ended(context, done, outcome)
    moved = _moved(context, candidate, outcome)
    events = _step_event(candidate, moved)
    requeue = outcome.requeue_after_s or _IN_FLIGHT_REQUEUE_S
    done = done.having(*_one_switch((*done.back, *done.actions), outcome.actions), *events)
    return replace(done, candidate=moved, wish=None, requeue_after_s=requeue)


def _one_switch(before: Sequence[Action], actions: Sequence[Action]) -> Sequence[Action]:
    """A second switch from the same view would be refused as stale; the candidate's is due again in the next pass."""
    if not any(isinstance(action, SwitchTraffic) for action in before):
        return actions
    return [action for action in actions if not isinstance(action, SwitchTraffic)]


def _walk(context: Context, candidate: Candidate) -> Waiting | Ended:
    for milestone in MILESTONES[candidate.kind]:
        progress = milestone(context, candidate)
        if not isinstance(progress, Passed):
            return progress
        candidate = progress.candidate
        context = replace(context, record=progress.record or context.record)
    raise AssertionError("the last milestone never passes: promotion is seen in the traffic, which ends the candidate")


def _where_it_was(before: Candidate, waiting: Waiting) -> Waiting:
    """Without the registry the walk ends at the first milestone: nothing is known, and so nothing was lost either."""
    if waiting.blocked is not Reason.REGISTRY_UNAVAILABLE or before.step is Step.PENDING:
        return waiting
    return replace(waiting, step=before.step)


def _within_deadline(context: Context, before: Candidate, waiting: Waiting) -> Waiting | Ended:
    """A step that makes no progress ends the candidate; the clock stands still while something outside is awaited.

    It also ran while nobody worked (a laptop asleep, a control plane that was down), so being over it once is not
    enough: only what is still stuck after a grace has ended. Where somebody looks, a pass comes within twice the grace
    (a back-off takes no longer than it); after more than that nobody looked, and the grace begins anew.
    """
    if waiting.blocked or waiting.step is not before.step or before.blocked_since or _may_last(context, waiting):
        return waiting
    limit = context.spec.promotion.progress_deadline_seconds
    if context.now - _clock_start(context, before) <= limit:
        return replace(waiting, candidate=with_facts(waiting.candidate, overdue_since=None))
    overdue = before.overdue_since or context.now
    if context.now - overdue >= 2 * _OVERDUE_GRACE_S:
        overdue = context.now
    if context.now - overdue < _OVERDUE_GRACE_S:
        return replace(waiting, candidate=with_facts(waiting.candidate, overdue_since=overdue))
    stuck = "; ".join(part for part in (waiting.message, context.refused) if part)
    message = f"{waiting.step} made no progress for {limit} s (promotion.progressDeadlineSeconds): {stuck}"
    return failed(waiting.candidate, Reason.PROGRESS_DEADLINE_EXCEEDED, message)


def _may_last(context: Context, waiting: Waiting) -> bool:
    """A reviewer may take days, a training too, from when it is there."""
    if waiting.step is Step.TRAINING:
        known = waiting.candidate.attempts
        trainings = [found for found in _attempts(context, waiting.candidate) if found[1].step is WorkloadStep.TRAIN]
        return any(known[piece] == work.attempt for piece, work in trainings)
    return waiting.step is Step.AWAITING_APPROVAL


def _clock_start(context: Context, candidate: Candidate) -> int:
    """The step's start, or that or the end of its newest attempt: an attempt has a deadline of its own."""
    moments = [max(work.started_at, work.finished_at) for _, work in _attempts(context, candidate)]
    return max([candidate.step_started_at, *moments])


def _attempts(context: Context, candidate: Candidate) -> list[tuple[str, WorkloadObserved]]:
    """Those at the candidate's work that are there, each with the piece of work that the candidate counts it by."""
    found = [(workload.piece, workload) for workload in context.observed.workloads]
    return [(piece, workload) for piece, workload in found if piece in candidate.attempts]


def _moved(context: Context, before: Candidate, waiting: Waiting) -> Candidate:
    same_step = waiting.step is before.step
    started = before.step_started_at if same_step else context.now
    overdue = waiting.candidate.overdue_since if same_step else None
    if same_step and before.blocked_since is not None and not waiting.blocked:
        stood_still = context.now - before.blocked_since
        started += stood_still
        overdue = overdue + stood_still if overdue is not None else None
    return with_facts(
        waiting.candidate,
        step=waiting.step,
        step_started_at=started,
        message=cut(waiting.message),
        blocked_since=(before.blocked_since or context.now) if waiting.blocked else None,
        overdue_since=overdue,
    )


def _step_event(before: Candidate, after: Candidate) -> tuple[Action, ...]:
    if before.step is after.step:
        return ()
    message = f"{after.kind} {after.id}: {after.step}"
    return (EmitEvent(type="Normal", reason=_reason_of(after.step), message=message),)


def _reason_of(step: Step) -> Reason:
    return Reason.INDEXING if step in (Step.INDEXING_EVALUATION, Step.INDEXING_SERVING) else Reason(step.value)


def _ended(context: Context, done: _Pass, ended: Ended) -> _Pass:
    history = with_entry(done.history, entry_of_end(ended, context.now))
    message = f"{ended.candidate.kind} {ended.candidate.id} {ended.outcome}: {ended.message}"
    event = EmitEvent(type="Warning", reason=ended.reason, message=cut(message))
    taken = done.slots or candidates.slots(context, may_advance=False)
    wish = candidates.wanted(_with_history(context, history), taken)
    done = done.having(*ended.actions, event)
    return replace(done, history=history, candidate=None, wish=wish, slots=taken, requeue_after_s=1.0)


def _immutable_problem(context: Context) -> tuple[Reason, str] | None:
    accepted, now = context.status.immutable, immutable_fields(context.model)
    changed = [
        f"{path}: found {now[path]!r}, accepted before {accepted[path]!r}; set it back, or make a new object"
        for path in now
        if path in accepted and accepted[path] != now[path]
    ]
    return (Reason.IMMUTABLE_FIELD_CHANGED, "; ".join(changed)) if changed else None


def _plan(context: Context, done: _Pass, *, stalled: tuple[Reason, str] | None = None, why: str = "") -> Plan:
    """Upkeep, conditions, status: what every pass ends with."""
    status = context.status
    retry = done.retry or context.handled_retry
    actions = _with_upkeep(context, done, retry)
    is_all_known = not any(problem.keeps_files for problem in context.observed.problems)
    may_remove = done.is_quiet and is_all_known and not (actions or stalled or context.spec.suspend)
    collected = collection.collection(context, done.history, done.wish, may_remove=may_remove)
    found = Found(context.champion, done.candidate, done.wish, done.history, stalled)
    new_status = RetrievalModelStatus(
        observed_generation=context.model.metadata.generation,
        phase=phase(context, found),
        conditions=conditions(context, found),
        champion=context.champion,
        candidate=done.candidate,
        history=without_old_stacks(context, done.history),
        address=context.observed.traffic.address,
        handled_retry=retry,
        training_slot=done.slots.training if done.slots else status.training_slot,
        refresh_slot=done.slots.refresh if done.slots else status.refresh_slot,
        immutable=status.immutable or immutable_fields(context.model),
    )
    forgot = [context.now + 1] if new_status.history != done.history else []  # their files may go in the next pass
    moments = [*forgot, *([collected.next_at] if collected.next_at is not None else [])]
    return Plan(
        actions=(*actions, *collected.actions),
        status=new_status,
        requeue_after_s=_requeue(context, done, moments),
        why=why or _why(found, context),
    )


def _with_upkeep(context: Context, done: _Pass, retry: str) -> tuple[Action, ...]:
    return (
        *done.back,  # clients first: what is left may be repaired in vain
        *finalizer(context),  # before anything is made that it is there for
        *upkeep.champion_upkeep(context),  # before all that a candidate wants: it must not wait for the registry
        *upkeep.former_upkeep(context),
        *done.actions,
        *upkeep.stopped_workloads(context, done.candidate, suspended=context.spec.suspend, may_collect=done.is_quiet),
        *upkeep.collected_stacks(context, done.candidate, done.history),
        *upkeep.collected_workloads(context, done.candidate),
        *upkeep.projections(context, done.candidate, done.history, retry),
        *run_states(context, done.candidate),
        *run_images(context),
    )


def _why(found: Found, context: Context) -> str:
    if candidates.rests(context.spec, found.candidate):
        return "suspended: no new work is started"
    if found.stalled is not None:
        return found.stalled[1]
    if found.candidate is not None:
        return f"{found.candidate.step}: {found.candidate.message}"
    if found.wish is not None and not found.wish.refused:
        return f"{found.wish.kind} {found.wish.id} has not begun: {not_begun(context)[1]}"
    return _why_idle(found, context)


def _why_idle(found: Found, context: Context) -> str:
    """Nothing is in flight and nothing may begin."""
    if found.wish is not None:
        entry = newest(found.history, found.wish.id)
        ending = f" ({entry.outcome})" if entry is not None else ""
        return f"{found.wish.kind} {found.wish.id} was refused{ending}; change the spec, or ask for a retry"
    if found.champion is None:
        return "waiting"
    return "nothing to do" if _champion_serves(context) else f"stack {found.champion.stack} is made ready again"


def _requeue(context: Context, done: _Pass, others: Sequence[int]) -> float | None:
    """The soonest moment at which time alone changes something."""
    spec, now, champion = context.spec, context.now, context.champion
    moments: list[float] = [now + done.requeue_after_s] if done.requeue_after_s else []
    moments += others
    if context.registry is None or context.observed.problems:
        moments.append(now + _IN_TROUBLE_REQUEUE_S)
    for expression in (spec.data.schedule, spec.index.refresh.schedule):
        if expression is not None:
            moments.append(next_slot_at(expression, spec.data.time_zone, now))
    if champion is not None:
        ends = [champion.baking_until, upkeep.connections_end(context)]
        ends += [upkeep.autoscaler_settles_at(champion)] if spec.serving.replicas.most else []
        moments += [moment for moment in ends if moment > now]
        if not _champion_serves(context):
            moments.append(now + 5)
    return max(1.0, min(moments) - now) if moments else None


def _champion_serves(context: Context) -> bool:
    stack = context.observed.stacks.get(context.champion.stack) if context.champion else None
    return stack is not None and stack.is_ready and context.observed.traffic.live is not None

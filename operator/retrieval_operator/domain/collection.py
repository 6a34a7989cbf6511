"""Removing files that nothing may need any more, by a workload per key; the control plane itself touches no storage.

    withdraw the reports -> run `retrieval-data remove` -> note it on the runs -> forget the attempts' records

The report goes first: it is the proof that files are complete, so it must never outlive them. While files are being
removed no candidate walks (`is_in_the_way`), and a candidate that wants to has the removal stopped. Should a pass that
saw an old world start a work beside its removal all the same, the note finds that out: a report that may be older than
the end of the removal is withdrawn again, and the work, started once more, makes anew what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import TAG_COLLECTED, TAG_REPORT
from retrieval_operator.api.status import HistoryEntry
from retrieval_operator.domain import commands
from retrieval_operator.domain.attempts import STOPPED, delay_s, how_it_ended
from retrieval_operator.domain.candidates import Wanted
from retrieval_operator.domain.context import Context, cut
from retrieval_operator.domain.observed import RegistryObserved, RunObserved
from retrieval_operator.domain.plan import Action, DeleteWorkload, EmitEvent, StartWorkload, TagRun
from retrieval_operator.domain.retention import FOLDERS, garbage
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep

# The end of a removal wakes the queue; this is the safety net.
_RUNNING_REQUEUE_S = 15
# How long a slot of a schedule waits for files to go. A candidate leaves up to four directories, and removing one takes
# seconds, in a cluster those of a pod's start: enough for more of them, so that a backlog shrinks. A gut feeling.
_HOLDS_UP_S = 180


@dataclass(frozen=True)
class Collection:
    """What to do now; `next_at` is when a removal that failed is tried again, None when none waits."""

    actions: tuple[Action, ...] = ()
    next_at: int | None = None


def collection(context: Context, history: list[HistoryEntry], wish: Wanted | None, *, may_remove: bool) -> Collection:
    """The next thing to do for one key. `may_remove`: nothing is in flight, begins, or changes in this pass."""
    registry = context.registry
    if registry is None:
        return Collection()  # what may go is not known
    said = (*_noted(context, registry), *_made_again(context, registry))
    if said or not may_remove:
        return Collection(said)
    if any(work.state == "Running" for work in context.observed.workloads):
        return Collection(next_at=context.now + _RUNNING_REQUEUE_S)
    waiting = []
    found = garbage(context, registry, history, wish)
    for key in sorted(found, key=lambda key: len(_removals(context, key))):  # what fails again and again comes last
        runs = found[key]
        proofs = withdrawals(runs)
        if proofs:
            return Collection(proofs)
        attempt = next_attempt(context, _removals(context, key))
        if attempt.number:
            names = sorted({f"{FOLDERS[run.step]}/{key}" for run in runs})
            work = commands.collect(context.model, key=key, attempt=attempt.number, names=names)
            return Collection((*attempt.actions, StartWorkload(workload=work)))
        waiting.append(attempt.next_at)
    return Collection(next_at=min(waiting, default=None))


def is_due(context: Context, history: list[HistoryEntry], wish: Wanted) -> bool:
    """Whether files can go before this wish begins: a schedule that is never idle would keep all of them.

    For about `_HOLDS_UP_S` after the last candidate at most, however long a removal takes and however many are due: the
    rest follows after the next one. Not while it is not all known what is needed.
    """
    if any(problem.keeps_files for problem in context.observed.problems):
        return False
    # One that found nothing new leaves no moment in the history.
    last_work = [work.finished_at for work in context.observed.workloads if work.step is not WorkloadStep.COLLECT]
    moments = [*last_work, *(entry.at for entry in history)]
    # A later one is of a clock that is, or was, ahead.
    if context.now - max((at for at in moments if at <= context.now), default=0) >= _HOLDS_UP_S:
        return False
    is_removing = any(work.state == "Running" for work in _removals(context))
    return is_removing or bool(collection(context, history, wish, may_remove=True).actions)


def is_in_the_way(context: Context) -> bool:
    """Whether files are being removed, or it is not noted yet which are gone: until then nothing is built on files."""
    if any(work.state == "Running" for work in _removals(context)):
        return True
    return context.registry is not None and bool(_noted(context, context.registry))


def withdrawals(runs: Sequence[RunObserved]) -> tuple[Action, ...]:
    """Take back the proof of completion of those that have one."""
    return tuple(TagRun(run_id=run.run_id, tags={TAG_REPORT: ""}) for run in runs if run.report is not None)


@dataclass(frozen=True)
class Attempt:
    """The attempt to start now, 0 while the former one rests until `next_at`; `actions` tell how that one failed."""

    number: int
    next_at: int = 0
    actions: tuple[Action, ...] = ()


def next_attempt(context: Context, before: Sequence[WorkloadObserved]) -> Attempt:
    """A removal is tried for ever, ever more rarely: whatever stopped it, a person may have mended it.

    `before` are its ended attempts, none of which succeeded.
    """
    latest = max(before, key=lambda work: work.attempt, default=None)
    if latest is None:
        return Attempt(1)
    if latest.reason == STOPPED:
        return Attempt(latest.attempt + 1)
    next_at = min(latest.finished_at, context.now) + delay_s(latest.attempt)
    if context.now < next_at:
        return Attempt(0, next_at)
    told = EmitEvent(type="Warning", reason=Reason.REMOVAL_FAILED, message=cut(f"{how_it_ended(latest)}; trying again"))
    older = [DeleteWorkload(name=work.name) for work in before if work != latest]
    return Attempt(latest.attempt + 1, actions=(told, *older))


def _noted(context: Context, registry: RegistryObserved) -> tuple[Action, ...]:
    """For each removal that has ended: what its runs must say, then, once they do, the attempts are forgotten."""
    actions: list[Action] = []
    for removal in (work for work in _removals(context) if work.state != "Running"):
        runs = [run for run in registry.runs.values() if run.step in FOLDERS and run.key == removal.key]
        notes = [note for run in runs for note in _note(context, run, removal)]
        if removal.state == "Succeeded" and not notes:
            over = [work for work in _of_key(context, removal.key) if _is_over(work, removal) and work != removal]
            actions += [DeleteWorkload(name=work.name) for work in (*over, removal)]
        elif removal.state == "Succeeded":
            message = f"files of {removal.key} were removed: it is beyond revisionHistoryLimit"
            notes.append(EmitEvent(type="Normal", reason=Reason.FILES_COLLECTED, message=message))
        actions += notes
    return tuple(actions)


def _note(context: Context, run: RunObserved, removal: WorkloadObserved) -> list[Action]:
    """Nothing for work that was started since: it has made its files anew."""
    attempts = [work for work in context.observed.workloads if work.is_part_of(run.step, run.key)]
    if any(not _is_over(work, removal) for work in attempts):
        return []
    tags = {TAG_REPORT: ""} if run.report is not None else {}
    if removal.state == "Succeeded" and run.tags.get(TAG_COLLECTED, "") != removal.name:
        tags[TAG_COLLECTED] = removal.name
    return [TagRun(run_id=run.run_id, tags=tags)] if tags else []


def _is_over(work: WorkloadObserved, removal: WorkloadObserved) -> bool:
    """Started before the removal ended: what it found or wrote may be gone."""
    return work.started_at < removal.finished_at


def _made_again(context: Context, registry: RegistryObserved) -> tuple[Action, ...]:
    """Runs whose work was taken up again have files again, or a part of them."""
    actions: list[Action] = []
    for run in registry.runs.values():
        if run.tags.get(TAG_COLLECTED) and not _removals(context, run.key):
            started = any(work.is_part_of(run.step, run.key) for work in context.observed.workloads)
            if run.report is not None or started:
                actions.append(TagRun(run_id=run.run_id, tags={TAG_COLLECTED: ""}))
    return tuple(actions)


def _of_key(context: Context, key: str) -> list[WorkloadObserved]:
    return [work for work in context.observed.workloads if work.key == key]


def _removals(context: Context, key: str = "") -> list[WorkloadObserved]:
    """Attempts at removing the files of this key, or of any key for ""."""
    removals = [work for work in context.observed.workloads if work.step is WorkloadStep.COLLECT]
    return [work for work in removals if not key or work.key == key]

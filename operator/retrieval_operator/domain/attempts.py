"""Attempts at one piece of work: start the first, wait, back off after a failure, give up at the limit.

Completion is proved by a report, never by a workload's state, so this module is asked only while the report is absent.
Attempts are counted from what is observed; `candidate.attempts` only keeps a stale observation from counting twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import FINAL_EXIT_CODES, ExitCode
from retrieval_operator.api.status import Candidate
from retrieval_operator.domain.commands import workload_name
from retrieval_operator.domain.context import Context, with_facts
from retrieval_operator.domain.plan import StartWorkload
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec

FIRST_DELAY_S = 10  # gut feeling: long enough for a restart of MLflow, short enough to watch
LONGEST_DELAY_S = 600
# A program reports before it exits 0; the registry's search may trail by seconds. Beyond this the report is lost, and
# another attempt finds the work complete and only reports again.
REPORT_GRACE_S = 30
# What a program says when a second attempt with the same input would fail in the same way.
_FINAL_REASONS: Mapping[str, Reason | None] = {
    "BadInput": Reason.BAD_INPUT,
    "Diverged": Reason.DIVERGED,
    "BadArguments": None,
}
# How an adapter says that we stopped the workload ourselves (suspension): not a failure.
STOPPED = "Stopped"


@dataclass(frozen=True)
class Pending:
    """Not finished: perhaps start an attempt now, perhaps wait until `next_at`."""

    candidate: Candidate
    start: StartWorkload | None = None
    message: str = ""
    next_at: int | None = None


@dataclass(frozen=True)
class GivenUp:
    """No further attempt makes sense. `reason` when the program itself said why, None when attempts ran out."""

    message: str
    reason: Reason | None


def ensure(context: Context, candidate: Candidate, wanted: WorkloadSpec, limit: int) -> Pending | GivenUp:
    """What to do about a piece of work whose report is not there; at most `limit` failed attempts."""
    piece = wanted.piece
    seen = attempts_at(context, candidate, wanted)
    latest = max(seen, key=lambda workload: workload.attempt, default=None)
    if latest is None:
        first = candidate.ignored_attempts.get(piece, 0) + 1
        return _start(context, candidate, wanted, max(candidate.attempts.get(piece, 0), first))
    if latest.state == "Running":
        return Pending(_knowing(candidate, piece, latest.attempt), message=f"{latest.name} is running")
    ended_at = min(latest.finished_at, context.now)  # a clock that was ahead must not hold up what comes
    grace_ends = ended_at + REPORT_GRACE_S
    if latest.state == "Succeeded" and context.now < grace_ends:
        return Pending(candidate, message=f"{latest.name} has finished; waiting for its report", next_at=grace_ends)
    failures = [workload for workload in seen if _counts(workload)]
    if _is_final(latest) or len(failures) >= limit:
        return _give_up(latest, len(failures))
    next_at = ended_at + delay_s(len(failures)) if failures else context.now
    if context.now < next_at:
        return Pending(candidate, message=f"{how_it_ended(latest)}; another attempt follows", next_at=next_at)
    return _start(context, candidate, wanted, max(candidate.attempts.get(piece, 0), latest.attempt + 1))


def attempts_at(context: Context, candidate: Candidate, wanted: WorkloadSpec) -> list[WorkloadObserved]:
    """The attempts at a piece of work that are seen and that count: a person's retry leaves out those before it."""
    ignored = candidate.ignored_attempts.get(wanted.piece, 0)
    return [
        workload
        for workload in context.observed.workloads
        if workload.step == wanted.step and workload.key == wanted.key and workload.attempt > ignored
    ]


def _start(context: Context, candidate: Candidate, wanted: WorkloadSpec, attempt: int) -> Pending:
    name = workload_name(context.model, wanted.step, wanted.key, attempt)
    started = _knowing(candidate, wanted.piece, attempt)
    action = StartWorkload(workload=replace(wanted, name=name, attempt=attempt))
    return Pending(started, start=action, message=f"{name} is starting")


def _knowing(candidate: Candidate, piece: str, attempt: int) -> Candidate:
    return with_facts(candidate, attempts={**candidate.attempts, piece: attempt})


def _counts(workload: WorkloadObserved) -> bool:
    return workload.reason != STOPPED


def delay_s(failures: int) -> int:
    """How long after its end the next attempt follows that many failures, at least one."""
    return int(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 1)))


def _give_up(latest: WorkloadObserved, failures: int) -> GivenUp:
    final = _is_final(latest)
    suffix = "" if final else f" (attempt {failures}, the last one)"
    return GivenUp(
        f"{how_it_ended(latest)}{suffix}", _FINAL_REASONS.get(latest.reason or _code_reason(latest)) if final else None
    )


def _is_final(latest: WorkloadObserved) -> bool:
    """What the program said goes before its exit code: a launcher such as torchrun turns every code into 1."""
    return latest.reason in _FINAL_REASONS or latest.exit_code in FINAL_EXIT_CODES


def _code_reason(latest: WorkloadObserved) -> str:
    return "" if latest.exit_code is None else ExitCode(latest.exit_code).reason


def how_it_ended(latest: WorkloadObserved) -> str:
    """An attempt's end without a report, in a sentence."""
    if latest.state == "Succeeded":
        return f"{latest.name} ended without a report"
    said = f": {latest.message}" if latest.message else ""
    code = (
        "was lost"
        if latest.exit_code is None
        else f"failed with exit code {latest.exit_code}{_code_name(latest.exit_code)}"
    )
    return f"{latest.name} {code}{said}"


def _code_name(code: int) -> str:
    try:
        return f" ({ExitCode(code).name.lower().replace('_', ' ')})"
    except ValueError:
        return ""

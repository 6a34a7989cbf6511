"""One piece of work with a run to report to: the part that every measuring milestone shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.status import Candidate, CandidateKind, Step
from retrieval_operator.domain import attempts
from retrieval_operator.domain.context import Context, Ended, Waiting, failed, with_facts
from retrieval_operator.domain.plan import CreateStack, EnsureRun, StartWorkload
from retrieval_operator.domain.workloads import WorkloadSpec


def registry_away(context: Context, step: Step, candidate: Candidate) -> Waiting:
    """Without the registry nothing is known to be complete; work in progress goes on, the candidate waits."""
    return Waiting(
        step,
        candidate,
        message=context.registry_trouble,
        requeue_after_s=10,
        blocked=Reason.REGISTRY_UNAVAILABLE,
    )


def held_back(context: Context, before: Candidate, waiting: Waiting) -> Waiting:
    """Nothing is started while something that it needs is missing. What runs goes on, and so does a way back."""
    starts = any(isinstance(action, StartWorkload | CreateStack) for action in waiting.actions)
    if not (starts and context.missing) or before.kind is CandidateKind.ROLLBACK:
        return waiting
    candidate = with_facts(waiting.candidate, attempts=before.attempts)
    message = f"nothing is started: {context.missing}"
    return Waiting(waiting.step, candidate, message=message, requeue_after_s=10, blocked=Reason.DEPENDENCY_MISSING)


def report_of(
    context: Context,
    candidate: Candidate,
    step: Step,
    wanted: WorkloadSpec,
    *,
    title: str,
    limit: int,
    given_up: Reason,
    tags: Mapping[str, str] | None = None,
    first: WorkloadSpec | None = None,
) -> Mapping[str, Any] | Waiting | Ended:
    """The report of a piece of work; else what is done to get it.

    The run comes first (programs report to it), then attempts until the report is there or `limit` have failed.
    `first` is a part that has to succeed before the work starts, None for none; it has `limit` attempts of its own.
    """
    if context.registry is None:
        return registry_away(context, step, candidate)
    run = context.registry.runs.get(f"{wanted.step}:{wanted.key}")
    if run is None:
        parent = "" if wanted.key == candidate.revision else candidate.revision
        ensure = EnsureRun(step=wanted.step, key=wanted.key, name=title, parent_key=parent, tags=tags or {})
        return Waiting(step, candidate, actions=(ensure,), message="creating the MLflow run")
    if run.report is not None:
        return run.report
    if first is not None and _is_due(context, candidate, first, wanted):
        wanted = first
    else:
        wanted = replace(wanted, run_id=run.run_id)
    result = attempts.ensure(context, candidate, wanted, limit)
    if isinstance(result, attempts.GivenUp):
        return failed(candidate, result.reason or given_up, result.message)
    return Waiting(
        step,
        result.candidate,
        actions=(result.start,) if result.start else (),
        message=result.message,
        requeue_after_s=max(1, result.next_at - context.now) if result.next_at else None,
    )


def _is_due(context: Context, candidate: Candidate, first: WorkloadSpec, wanted: WorkloadSpec) -> bool:
    """Whether the part has to be done: it has not succeeded, and the work itself was not begun without its record."""
    succeeded = any(work.state == "Succeeded" for work in attempts.attempts_at(context, candidate, first))
    return not succeeded and not attempts.attempts_at(context, candidate, wanted)

"""What MLflow should say of runs, for people only: completion is proved by reports, no decision looks at any of it.

Of those without a report whether the work goes on, has failed, or is wanted by nobody: changed once, when the work has
ended, and changed back when it is taken up again. Of all of them the image that ran, by digest.
"""

from __future__ import annotations

from retrieval_operator.api.constants import TAG_IMAGE
from retrieval_operator.api.status import Candidate
from retrieval_operator.domain.attempts import STOPPED
from retrieval_operator.domain.context import Context
from retrieval_operator.domain.observed import RunObserved, RunStatus
from retrieval_operator.domain.plan import Action, SetRunStatus, TagRun
from retrieval_operator.domain.workloads import WorkloadObserved, piece


def run_states(context: Context, candidate: Candidate | None) -> tuple[Action, ...]:
    """Nothing while the registry is away."""
    runs = context.registry.runs.values() if context.registry else ()
    wanted = {run.run_id: _status(context, candidate, run) for run in runs if run.report is None}
    return tuple(
        SetRunStatus(run_id=run.run_id, status=status)
        for run in runs
        if (status := wanted.get(run.run_id, run.status)) != run.status
    )


def run_images(context: Context) -> tuple[Action, ...]:
    """Tags of the runs whose image is known and not written yet; one that is known no more stays written."""
    runs = context.registry.runs.values() if context.registry else ()
    latest = [(run, _latest(context, run)) for run in runs]
    return tuple(
        TagRun(run_id=run.run_id, tags={TAG_IMAGE: work.image})
        for run, work in latest
        if work is not None and work.image and work.image != run.tags.get(TAG_IMAGE)
    )


def _status(context: Context, candidate: Candidate | None, run: RunObserved) -> RunStatus:
    latest = _latest(context, run)
    pieces = {piece(run.step, run.key)} | ({latest.piece} if latest is not None else set())
    is_wanted = candidate is not None and pieces & candidate.attempts.keys()
    if is_wanted or (latest is not None and latest.state == "Running"):
        return "Running"
    if run.status != "Running":
        return run.status  # how it ended stays said, also when the attempt's record is collected
    if candidate is not None and latest is None:
        return "Running"  # made in the pass before; its first attempt follows
    return "Killed" if latest is None or latest.reason == STOPPED else "Failed"


def _latest(context: Context, run: RunObserved) -> WorkloadObserved | None:
    attempts = [work for work in context.observed.workloads if work.is_part_of(run.step, run.key)]
    return max(attempts, key=lambda work: (work.started_at, work.step == run.step, work.attempt), default=None)

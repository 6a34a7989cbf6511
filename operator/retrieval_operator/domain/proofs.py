"""Which proofs of completion hold: a report in the registry says that files are whole, wherever they were.

When an object's claim was deleted (with its namespace, say) and made again, its files are gone and the reports are not.
So each run is tagged with the storage its files lie on, and reports about another storage are taken back.
"""

from __future__ import annotations

from dataclasses import replace

from retrieval_operator.api.constants import TAG_REPORT, TAG_STORAGE
from retrieval_operator.domain.observed import Observed, RunObserved
from retrieval_operator.domain.plan import Action, TagRun


def holding(observed: Observed) -> tuple[Observed, tuple[Action, ...]]:
    """The world with those reports alone that are about the storage of now, and what to write about the others.

    Unchanged while the registry is away, or where the storage cannot be told from another one.
    """
    registry, storage = observed.registry, observed.storage_id
    if registry is None or not storage:
        return observed, ()
    moved = [run for run in registry.runs.values() if run.tags.get(TAG_STORAGE, "") != storage]
    stale = {run.run_id for run in moved if run.tags.get(TAG_STORAGE)}
    runs = {name: replace(run, report=None) if run.run_id in stale else run for name, run in registry.runs.items()}
    actions = tuple(_note(run, storage, is_stale=run.run_id in stale) for run in moved)
    return replace(observed, registry=replace(registry, runs=runs)), actions


def _note(run: RunObserved, storage: str, *, is_stale: bool) -> Action:
    withdrawn = {TAG_REPORT: ""} if is_stale and run.report is not None else {}
    return TagRun(run_id=run.run_id, tags={**withdrawn, TAG_STORAGE: storage})

"""Whose files are kept: a pure function of the spec, the status, what runs, and what the registry remembers.

Files are named by the key of the work that made them: `revisions/<key>` by a training, `indexes/<key>` by an index
build. A key is kept while anything that may still serve, or that somebody may still ask for, refers to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from retrieval_operator.api.constants import TAG_COLLECTED
from retrieval_operator.api.status import HistoryEntry, StackRecord
from retrieval_operator.domain.candidates import Wanted
from retrieval_operator.domain.commands import storage_root
from retrieval_operator.domain.context import Context
from retrieval_operator.domain.history import promoted_at, promoted_records
from retrieval_operator.domain.identity import evaluation_generation_key
from retrieval_operator.domain.observed import RegistryObserved, RunObserved
from retrieval_operator.domain.workloads import WorkloadStep

# The folder below the object's root that a step writes to. Evaluations and verifications are small, and stay.
FOLDERS: Mapping[str, str] = {
    WorkloadStep.TRAIN: "revisions",
    WorkloadStep.INDEX_EVALUATION: "indexes",
    WorkloadStep.INDEX_CHAMPION: "indexes",
    WorkloadStep.INDEX_SERVING: "indexes",
}


def garbage(
    context: Context, registry: RegistryObserved, history: list[HistoryEntry], wish: Wanted | None
) -> dict[str, list[RunObserved]]:
    """The runs whose files are neither kept nor collected yet, by key, in a fixed order.

    `history` as the last status has it, or more. `wish` is what the object asks for and was refused, or has not begun;
    None for nothing.
    What no run names is not found: it stays, which loses nothing.
    """
    kept = _kept_keys(context, registry, history, wish)
    found: dict[str, list[RunObserved]] = {}
    for run in registry.runs.values():
        if run.step in FOLDERS and run.key not in kept and not run.tags.get(TAG_COLLECTED):
            found.setdefault(run.key, []).append(run)
    return dict(sorted(found.items()))


def _kept_keys(
    context: Context, registry: RegistryObserved, history: list[HistoryEntry], wish: Wanted | None
) -> set[str]:
    records = [*_serving(context), *promoted_records(history)]
    keys = {key for record in records for key in (record.revision, record.generation_key)}
    keys.update(_not_promoted(history, context.spec.revision_history_limit))
    keys.update(_promoted_last(registry, context.spec.revision_history_limit))
    if wish is not None:
        keys.update((wish.id, wish.revision))
    keys.update(_named_by_uris(context, records))
    reports = [registry.report(WorkloadStep.TRAIN, key) for key in keys]
    bundles = {record.bundle_id for record in records} | {str(report.get("id", "")) for report in reports if report}
    return keys | _judged_with(context, registry, history, bundles) | _comparable(context, bundles, wish)


def _serving(context: Context) -> Iterator[StackRecord]:
    """The champion, and whatever runs: a former stack in its rollback window may be older than the history."""
    if context.champion is not None:
        yield context.champion
    for stack in context.observed.stacks.values():
        yield stack.record


def _not_promoted(history: list[HistoryEntry], limit: int) -> Iterator[str]:
    """The newest candidates that came to nothing: a retry of them, or a look at them, is near."""
    ended = [entry for entry in history if entry.outcome != "Promoted"]
    for candidate_id in list(dict.fromkeys(entry.id for entry in ended))[:limit]:
        for entry in (entry for entry in ended if entry.id == candidate_id):
            yield from (entry.id, entry.revision, *([entry.record.generation_key] if entry.record else []))


def _promoted_last(registry: RegistryObserved, limit: int) -> Iterator[str]:
    """The newest promotions as the registry remembers them, for a status that was wiped: the champion's and `limit`."""
    for step in (WorkloadStep.TRAIN, WorkloadStep.INDEX_SERVING):
        # Refreshes that gave the same index again are one promotion.
        promoted = {promoted_at(run): run.key for run in registry.runs.values() if run.step == step}
        yield from (promoted[at] for at in sorted(promoted, reverse=True)[: limit + 1] if at)


def _named_by_uris(context: Context, records: Iterable[StackRecord]) -> Iterator[str]:
    """Keys in URIs: a bundle of ours that was imported again, a dataset that somebody put under our root."""
    model, root = context.spec.model, _path(storage_root(context.model))
    uris = [context.spec.data.uri, model.base or "", model.bundle_uri or ""]
    uris += [uri for record in records for uri in (record.bundle_uri, record.generation_uri, record.data_uri)]
    for uri in uris:
        for folder in set(FOLDERS.values()):
            _, is_below, rest = _path(uri).partition(f"{root}/{folder}/")
            if is_below:
                yield rest.partition("/")[0]


def _path(uri: str) -> str:
    return uri.removeprefix("file://")


def _judged_with(
    context: Context, registry: RegistryObserved, history: list[HistoryEntry], bundles: set[str]
) -> set[str]:
    """The evaluation generations of these bundles that the evaluations compared which the status still shows.

    A bundle may stay for years and be judged each night. All of them stay where nothing says which, as after a wiped
    status.
    """
    shown = {holder.evaluation_run for holder in (context.champion, *history) if holder is not None}
    reports = [run.report for run in registry.runs.values() if run.report and run.run_id in shown]
    sides = [report.get(side) for report in reports for side in ("candidate", "champion")]
    compared = {str(side.get("generationId", "")) for side in sides if isinstance(side, Mapping)}
    return {
        run.key
        for run in registry.runs.values()
        if run.step == WorkloadStep.INDEX_EVALUATION
        and run.report
        and run.report.get("bundleId") in bundles
        and (not compared or run.report.get("id") in compared)
    }


def _comparable(context: Context, bundles: set[str], wish: Wanted | None) -> set[str]:
    """The evaluation generations over today's data: a next candidate is compared with them.

    Of trainings in a slot and of those that the manifest asked for.
    """
    holders = (context.champion, context.status.candidate, wish)
    slots = {"", *(holder.slot for holder in holders if holder is not None)}
    uri = context.spec.data.uri
    return {evaluation_generation_key(context.spec, bundle, uri, slot) for bundle in bundles for slot in slots}

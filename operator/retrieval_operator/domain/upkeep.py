"""What is done beside the candidate's way: repair and scale the champion, collect what is over, keep projections true.

The MLflow aliases, verdict tags and descriptions are projections of what was decided; they are compared and repaired.
"""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import (
    ALIAS_CANDIDATE,
    ALIAS_CHAMPION,
    TAG_APPROVED_BY,
    TAG_AWAITING,
    TAG_BUNDLE_URI,
    TAG_PROMOTED_AT,
    TAG_REJECTED_BY,
    TAG_RETRY,
    TAG_REVISION,
    TAG_VERDICT,
)
from retrieval_operator.api.spec import Serving
from retrieval_operator.api.status import Candidate, CandidateKind, Champion, HistoryEntry, Step
from retrieval_operator.domain.champion import former_is_kept
from retrieval_operator.domain.context import Context
from retrieval_operator.domain.describe import version_description
from retrieval_operator.domain.history import record_of_champion, verdict_runs
from retrieval_operator.domain.observed import RegistryObserved, VersionObserved
from retrieval_operator.domain.plan import (
    Action,
    CreateStack,
    DeleteStack,
    DeleteWorkload,
    DescribeVersion,
    EmitEvent,
    ScaleStack,
    SetAlias,
    StopWorkload,
    TagRun,
)
from retrieval_operator.domain.workloads import WorkloadStep

# Who approved, when nobody gave a name.
APPROVED_BY_ANNOTATION = "annotation"
# How far back a HorizontalPodAutoscaler looks before it removes servers: --horizontal-pod-autoscaler-downscale-
# stabilization of kube-controller-manager, 5 minutes by default.
AUTOSCALER_SETTLES_S = 300
# Finished attempts kept with their logs; older ones go. They are small, people look at the last few lives.
KEPT_WORKLOADS = 40


def champion_upkeep(context: Context) -> tuple[Action, ...]:
    """The champion's stack exists and has its replicas, with or without its traffic. Never depends on the registry."""
    champion = context.champion
    if champion is None:
        return ()
    stack = context.observed.stacks.get(champion.stack)
    bounds = context.spec.serving.replicas
    if stack is None or stack.failed or not stack.complete:
        # Of a stack that is partly there its own, which may be an earlier one: its parts have to be of one.
        record = stack.record if stack is not None else record_of_champion(champion)
        create = CreateStack(record=record, replicas=bounds.min, max_replicas=bounds.most)
        if stack is not None and stack.complete:
            return (create,)  # of servers that fail the condition Ready tells; a cluster starts them again by itself
        message = f"starting the champion's stack {champion.stack} again"
        return (create, EmitEvent(type="Warning", reason=Reason.STACK_REPAIRED, message=message, of_action=True))
    wanted = bounds.min
    if bounds.most and context.now < autoscaler_settles_at(champion):
        wanted = min(max(stack.replicas, bounds.min), bounds.most)
    if (stack.replicas, stack.max_replicas) == (wanted, bounds.most):
        return ()
    return (ScaleStack(stack=champion.stack, replicas=wanted, max_replicas=bounds.most),)


def autoscaler_settles_at(champion: Champion) -> int:
    """Until then the floor that the champion was promoted with stays: an autoscaler still remembers a dark stack."""
    return champion.promoted_at + AUTOSCALER_SETTLES_S


def former_upkeep(context: Context) -> tuple[Action, ...]:
    """While the champion bakes, the stack to go back to has no fewer servers than the champion has ready.

    An autoscaler takes servers from a stack without traffic, and the champion may have been given more.
    """
    champion = context.champion
    if champion is None or context.now >= champion.baking_until:
        return ()
    former, live = (context.observed.stacks.get(stack) for stack in (context.observed.traffic.previous, champion.stack))
    if former is None or live is None or not former.complete:
        return ()
    most_asked_for = max(live.replicas, live.max_replicas)  # a rolling change has one more for a while
    wanted = min(live.ready_replicas, most_asked_for)
    if former.replicas >= wanted:
        return ()
    most = former.max_replicas and max(former.max_replicas, wanted)
    return (ScaleStack(stack=former.record.stack, replicas=wanted, max_replicas=most),)


def kept_stacks(context: Context, candidate: Candidate | None, history: list[HistoryEntry]) -> set[str]:
    """Live, the candidate's, and the former one for the rollback window (and always for the connection age)."""
    kept = {candidate.stack} if candidate is not None else set()
    champion, traffic = context.champion, context.observed.traffic
    if champion is None:
        return kept
    kept.add(champion.stack)
    if former_is_kept(history, traffic.previous) and context.now < max(champion.baking_until, connections_end(context)):
        kept.add(traffic.previous)
    return kept


def connections_end(context: Context) -> int:
    """When the last connection to the former stack ends, by the age that its own servers were started with."""
    former = context.observed.stacks.get(context.observed.traffic.previous)
    serving = former.record.serving if former is not None else {}
    age = int(serving.get("connectionAgeSeconds", Serving().connection_age_seconds))
    return context.observed.traffic.switched_at + age


def collected_stacks(context: Context, candidate: Candidate | None, history: list[HistoryEntry]) -> tuple[Action, ...]:
    loose = set(context.observed.stacks) - kept_stacks(context, candidate, history)
    if context.registry is None and (candidate is None or not candidate.stack):
        # Which stack is the candidate's is not known before its reports, or a lost status, can be read. A stack that
        # was rolled back is nobody's, and its clients must leave it.
        previous = context.observed.traffic.previous
        loose &= set() if former_is_kept(history, previous) else {previous}
    actions: list[Action] = []
    for stack in sorted(loose):
        message = f"stack {stack} is drained and removed: nothing needs it any more"
        told = EmitEvent(type="Normal", reason=Reason.STACK_COLLECTED, message=message, of_action=True)
        actions += [DeleteStack(stack=stack), told]
    return tuple(actions)


def collected_workloads(context: Context, candidate: Candidate | None) -> tuple[Action, ...]:
    """The oldest finished attempts beyond those kept. The candidate's stay: its failures are counted from them."""
    counted = candidate.attempts if candidate is not None else {}
    ended = [workload for workload in context.observed.workloads if workload.state != "Running"]
    finished = [workload for workload in ended if workload.piece not in counted]
    finished.sort(key=lambda workload: (workload.finished_at, workload.name), reverse=True)
    return tuple(DeleteWorkload(name=workload.name) for workload in finished[KEPT_WORKLOADS:])


def stopped_workloads(
    context: Context, candidate: Candidate | None, *, suspended: bool, may_collect: bool
) -> tuple[Action, ...]:
    """Running work that nobody waits for (of a superseded candidate, a training while suspended), and what is overdue.

    `may_collect`: nothing waits for a removal of files to be out of the way.
    """
    if context.registry is None:
        return ()  # what the candidate waits for is not known before its reports can be read
    ours = set(candidate.attempts) if candidate is not None else set()
    stops = []
    for workload in context.observed.workloads:
        wanted = workload.piece in ours and not (suspended and workload.step == "train")
        wanted = wanted or (may_collect and workload.step is WorkloadStep.COLLECT)
        # Its report is complete, so it is about to end by itself: stopped now, it would look as if it had failed.
        has_reported = context.registry.report(workload.step, workload.key) is not None
        if workload.state == "Running" and (workload.overdue or not wanted) and not has_reported:
            stops.append(StopWorkload(name=workload.name))
    return tuple(stops)


def projections(
    context: Context, candidate: Candidate | None, history: list[HistoryEntry], retry: str
) -> tuple[Action, ...]:
    """Aliases, verdicts, descriptions and the approval prompt in the registry; nothing while it is away."""
    registry = context.registry
    if registry is None:
        return ()
    return (
        *_aliases(context, registry, candidate),
        *_revisions(context, registry, candidate),
        *_verdicts(context, registry, history),
        *_promotion_times(registry, history),
        *_retry_tag(registry, history, retry),
        *_descriptions(registry, candidate, history),
        *_approval_prompt(registry, candidate),
    )


def _aliases(context: Context, registry: RegistryObserved, candidate: Candidate | None) -> list[Action]:
    champion = context.champion
    bundles = {
        ALIAS_CHAMPION: champion.bundle_id if champion else "",
        ALIAS_CANDIDATE: candidate.bundle_id if candidate and candidate.kind is CandidateKind.REVISION else "",
    }
    actions: list[Action] = []
    for alias, bundle in bundles.items():
        version = registry.versions.get(bundle) if bundle else None
        if bundle and version is None:
            continue  # not registered yet, or its version was deleted: nothing to point at
        wanted, found = (version.number if version else ""), registry.aliases.get(alias, "")
        if wanted == found:
            continue
        actions.append(SetAlias(alias=alias, version=wanted))
        if alias == ALIAS_CHAMPION and found and _was_recorded(context):
            message = f"alias {alias} was at version {found} but traffic goes to version {wanted}"
            actions.append(EmitEvent(type="Warning", reason=Reason.ALIAS_REPAIRED, message=message, of_action=True))
    return actions


def _was_recorded(context: Context) -> bool:
    """Whether the status already knew this champion: then the alias was moved by hand, not left behind by a switch."""
    recorded = context.status.champion
    return recorded is not None and context.champion is not None and recorded.stack == context.champion.stack


def _revisions(context: Context, registry: RegistryObserved, candidate: Candidate | None) -> list[Action]:
    """Several revisions may have given one bundle, which has one version: it tells of the champion's, if that has it.

    Else of the candidate's, which nobody has judged yet; and of that whenever a person is asked about it.
    """
    revision = candidate if candidate is not None and candidate.kind is CandidateKind.REVISION else None
    holders = [revision, context.champion]
    if revision is not None and revision.approval_token:
        holders.reverse()
    told = {holder.bundle_id: holder for holder in holders if holder is not None}
    return [
        DescribeVersion(
            version=version.number,
            tags={TAG_REVISION: holder.revision, TAG_BUNDLE_URI: holder.bundle_uri, TAG_VERDICT: ""},
        )
        for bundle, holder in told.items()
        if (version := registry.versions.get(bundle)) is not None and version.tags.get(TAG_REVISION) != holder.revision
    ]


def _verdicts(context: Context, registry: RegistryObserved, history: list[HistoryEntry]) -> list[Action]:
    actions: list[Action] = []
    for entry in _newest_per_id(history):
        verdict = "" if entry.retried else str(entry.outcome)
        for run in verdict_runs(registry, entry.kind, entry.id):
            if run.tags.get(TAG_VERDICT, "") != verdict:
                actions.append(TagRun(run_id=run.run_id, tags={TAG_VERDICT: verdict}))
        version = _version_of(registry, entry) if entry.kind is CandidateKind.REVISION else None
        if version is not None and version.tags.get(TAG_VERDICT, "") != verdict:
            actions.append(DescribeVersion(version=version.number, tags={TAG_VERDICT: verdict}))
    return actions


def _promotion_times(registry: RegistryObserved, history: list[HistoryEntry]) -> list[Action]:
    """Remember outside the status which files were promoted last (`retention`)."""
    times: dict[str, int] = {}
    for entry in history:
        if entry.outcome == "Promoted" and entry.record is not None:
            for name in (f"train:{entry.record.revision}", f"index:{entry.record.generation_key}"):
                times[name] = max(entry.at, times.get(name, 0))
    return [
        TagRun(run_id=run.run_id, tags={TAG_PROMOTED_AT: str(at)})
        for name, at in times.items()
        if (run := registry.runs.get(name)) is not None and run.tags.get(TAG_PROMOTED_AT) != str(at)
    ]


def _retry_tag(registry: RegistryObserved, history: list[HistoryEntry], retry: str) -> list[Action]:
    """Remember outside the status that a retry was acted on."""
    retried = [entry for entry in _newest_per_id(history) if entry.retried]
    runs = [run for entry in retried for run in verdict_runs(registry, entry.kind, entry.id)]
    return [
        TagRun(run_id=run.run_id, tags={TAG_RETRY: retry}) for run in runs if retry and run.tags.get(TAG_RETRY) != retry
    ]


def _descriptions(registry: RegistryObserved, candidate: Candidate | None, history: list[HistoryEntry]) -> list[Action]:
    judged = {
        entry.revision: version_description(entry.gates, str(entry.outcome), entry.evaluation_run)
        for entry in reversed(history)
        if entry.gates
    }
    if candidate is not None and candidate.gates:
        judged[candidate.revision] = version_description(candidate.gates, "under way", candidate.evaluation_run)
    return [
        DescribeVersion(version=version.number, description=judged[revision])
        for version in registry.versions.values()
        if (revision := version.tags.get(TAG_REVISION, "")) in judged
        and version.description.strip() != judged[revision].strip()
    ]


def _approval_prompt(registry: RegistryObserved, candidate: Candidate | None) -> list[Action]:
    """The question and its answer, on the version's page.

    Old answers are removed before the question is asked, so that only answers to this verdict count. An approval by
    annotation is written down there, too: it stands whatever becomes of annotation and status before the promotion.
    """
    version = registry.versions.get(candidate.bundle_id) if candidate and candidate.approval_token else None
    if version is None or candidate is None:
        return []
    is_asked = version.tags.get(TAG_AWAITING) == candidate.approval_token
    question = {TAG_APPROVED_BY: "", TAG_REJECTED_BY: "", TAG_AWAITING: candidate.approval_token}
    if candidate.step is Step.AWAITING_APPROVAL and not is_asked:
        return [DescribeVersion(version=version.number, tags=question)]
    if candidate.step is Step.PROMOTING and not (is_asked and version.tags.get(TAG_APPROVED_BY)):
        return [DescribeVersion(version=version.number, tags={**question, TAG_APPROVED_BY: APPROVED_BY_ANNOTATION})]
    return []


def _newest_per_id(history: list[HistoryEntry]) -> list[HistoryEntry]:
    seen: dict[str, HistoryEntry] = {}
    for entry in history:
        if entry.outcome == "Superseded":
            continue
        seen.setdefault(entry.id, entry)
    return list(seen.values())


def _version_of(registry: RegistryObserved, entry: HistoryEntry) -> VersionObserved | None:
    return next((v for v in registry.versions.values() if v.tags.get(TAG_REVISION) == entry.revision), None)

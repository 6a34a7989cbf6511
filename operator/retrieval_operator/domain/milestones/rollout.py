"""Indexed, deployed dark, verified, approved, promoted: encoder and index move together, as one stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import (
    APPROVE_ANNOTATION,
    REJECT_ANNOTATION,
    TAG_APPROVED_BY,
    TAG_AWAITING,
    TAG_REJECTED_BY,
    TAG_SERVER_IMAGE,
    TAG_STACK,
)
from retrieval_operator.api.status import Candidate, CandidateKind, Champion, StackRecord, Step
from retrieval_operator.domain import commands, gates
from retrieval_operator.domain.candidates import generation_of
from retrieval_operator.domain.champion import requested_rollback
from retrieval_operator.domain.context import Context, Ended, Passed, Progress, Waiting, cut, failed, with_facts
from retrieval_operator.domain.evidence import IndexReport, Unreadable, VerificationReport, read
from retrieval_operator.domain.identity import digest, serving_hash, stack_id, verification_key
from retrieval_operator.domain.milestones.work import report_of
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.domain.plan import CreateStack, ScaleStack, SwitchTraffic
from retrieval_operator.domain.workloads import WorkloadStep


def serving_indexed(context: Context, candidate: Candidate) -> Progress:
    """The serving generation is complete and sound."""
    report = _serving_generation(context, candidate)
    if isinstance(report, Waiting | Ended):
        return report
    former = context.champion
    former_items = _items_of(context, former) if former else None
    findings = gates.judge_generation(report, former_items)
    if findings:
        message = "; ".join(finding.message for finding in findings)
        return Ended("Rejected", Reason.INTEGRITY_FAILED, cut(f"index generation {report.id}: {message}"), candidate)
    if former is not None and former_items is None:
        message = (
            f"how many items the champion's index generation {former.generation_id} has is not known, so it cannot be "
            f"said whether items were lost; restore its run (index {former.generation_key}) in MLflow, then ask for a "
            "retry"
        )
        return Ended("Inconclusive", Reason.INTEGRITY_FAILED, message, candidate)
    record = _record(context, candidate, report)
    return Passed(with_facts(candidate, stack=record.stack), record)


def _serving_generation(context: Context, candidate: Candidate) -> IndexReport | Waiting | Ended:
    key = generation_of(context, candidate, candidate.refresh_slot)
    champion = context.champion
    reusable = champion.generation_uri if champion and champion.bundle_id == candidate.bundle_id else ""
    about = {"key": key, "bundle_id": candidate.bundle_id, "bundle": candidate.bundle_uri}
    about |= {"data_uri": candidate.data_uri, "previous": reusable}
    report = report_of(
        context,
        candidate,
        Step.INDEXING_SERVING,
        commands.index(context.model, WorkloadStep.INDEX_SERVING, **about),
        first=commands.encode(context.model, WorkloadStep.INDEX_SERVING, **about),
        title=f"serving index {key}",
        limit=context.spec.promotion.failure_limit,
        given_up=Reason.INDEXING_FAILED,
    )
    if isinstance(report, Waiting | Ended):
        return report
    try:
        generation = read(IndexReport, report)
    except Unreadable as error:
        return failed(candidate, Reason.INDEXING_FAILED, f"MANIFEST.json is not readable: {error}")
    if generation.bundle_id != candidate.bundle_id or generation.kind != "serving":
        found = f"a {generation.kind} generation of {generation.bundle_id}"
        return failed(
            candidate, Reason.INTEGRITY_FAILED, f"found {found}, expected a serving one of {candidate.bundle_id}"
        )
    return generation


def _items_of(context: Context, champion: Champion) -> int | None:
    """Items in the champion's index: its record says so, of older records its report; None when neither does."""
    if champion.items is not None or context.registry is None:
        return champion.items
    report = context.registry.report(WorkloadStep.INDEX_SERVING, champion.generation_key)
    try:
        return read(IndexReport, report).count if report is not None else None
    except Unreadable:
        return None


def _record(context: Context, candidate: Candidate, generation: IndexReport) -> StackRecord:
    """The candidate's bundle over this generation, under the serving spec of now."""
    key = generation_of(context, candidate, candidate.refresh_slot)
    return StackRecord(
        stack=stack_id(candidate.bundle_id, generation.id, serving_hash(context.spec)),
        bundle_id=candidate.bundle_id,
        bundle_uri=candidate.bundle_uri,
        generation_id=generation.id,
        generation_uri=commands.generation_uri(context.model, key),
        generation_key=key,
        serving_hash=serving_hash(context.spec),
        revision=candidate.revision,
        slot=candidate.slot,
        refresh_slot=candidate.refresh_slot,
        model_version=candidate.model_version,
        data_uri=candidate.data_uri,
        as_of=generation.as_of,
        items=generation.count,
        serving=context.spec.serving.explicit(),
    )


def _known_record(context: Context, candidate: Candidate) -> StackRecord:
    """The record of the milestones before; of kinds that index nothing, the one that they begin with."""
    if context.record is not None:
        return context.record
    if candidate.kind is CandidateKind.SERVING:
        return _reserved(context, candidate)
    request = requested_rollback(context)
    assert request is not None, "a Rollback candidate is superseded when nobody asks for it any more"
    return request.target


def _reserved(context: Context, candidate: Candidate) -> StackRecord:
    """The champion's bundle and generation under the serving spec of now."""
    assert context.champion is not None, "a Serving candidate exists only beside a champion"
    record = StackRecord.model_validate(context.champion.document())
    return record.model_copy(
        update={
            "stack": candidate.stack,
            "serving_hash": serving_hash(context.spec),
            "serving": context.spec.serving.explicit(),
        }
    )


def deployed(context: Context, candidate: Candidate) -> Progress:
    """The dark stack runs and its servers matched their expected ids."""
    record = _known_record(context, candidate)
    stack = context.observed.stacks.get(record.stack)
    candidate = with_facts(candidate, stack=record.stack)
    if stack is None or not stack.complete:
        bounds = context.spec.serving.replicas
        create = CreateStack(record=record, replicas=bounds.min, max_replicas=bounds.most)
        return Waiting(Step.DEPLOYING, candidate, actions=(create,), message=f"starting stack {record.stack}")
    if stack.failed:
        return failed(candidate, Reason.DEPLOYMENT_FAILED, f"stack {record.stack}: {stack.failed}", record)
    if not stack.is_ready:
        message = f"stack {record.stack} is not ready yet{_lacks(stack)}"
        return Waiting(Step.DEPLOYING, candidate, message=message, requeue_after_s=2)
    return Passed(candidate, record)


def verified(context: Context, candidate: Candidate) -> Progress:
    """The dark stack's answers equal direct computation, in time."""
    record = _known_record(context, candidate)
    stack, k = _stack(context, record), commands.served_k(context.model)
    key = verification_key(record.stack, k=k, image=stack.image, retry=candidate.retry)
    report = report_of(
        context,
        candidate,
        Step.VERIFYING,
        commands.verify(context.model, key=key, record=record, address=stack.address),
        title=f"verification of stack {record.stack}",
        limit=context.spec.promotion.failure_limit,
        given_up=Reason.VERIFICATION_FAILED,
        tags={TAG_STACK: record.stack, **({TAG_SERVER_IMAGE: stack.image} if stack.image else {})},
    )
    if isinstance(report, Waiting | Ended):
        return report
    return _judge_answers(context, candidate, record, report)


def _judge_answers(context: Context, candidate: Candidate, record: StackRecord, report: Mapping[str, Any]) -> Progress:
    try:
        verification = read(VerificationReport, report)
    except Unreadable as error:
        return failed(candidate, Reason.VERIFICATION_FAILED, f"verification.json is not readable: {error}", record)
    if (verification.bundle_id, verification.generation_id) != (record.bundle_id, record.generation_id):
        found = f"{verification.bundle_id} over {verification.generation_id}"
        expected = f"{record.bundle_id} over {record.generation_id}"
        return failed(
            candidate, Reason.VERIFICATION_FAILED, f"the stack answers as {found}, expected {expected}", record
        )
    findings = gates.judge_verification(verification, context.spec.promotion.max_latency_p99_ms)
    if findings:
        message = "; ".join(finding.message for finding in findings)
        return Ended("Rejected", Reason.VERIFICATION_FAILED, cut(f"stack {record.stack}: {message}"), candidate, record)
    return Passed(candidate)


def _lacks(stack: StackObserved) -> str:
    return f": {stack.waits_for}" if stack.waits_for else ""


def _stack(context: Context, record: StackRecord) -> StackObserved:
    return context.observed.stacks[record.stack]


def approval_token(context: Context, candidate: Candidate) -> str:
    """What an approval names: this stack after this verdict and retry, in the place of this champion.

    So an older answer does not count, nor does that of another time that the same stack was to follow the same one.
    """
    gates = [gate.document() for gate in candidate.gates]
    champion = context.champion.token if context.champion else ""
    verdict = digest("verdict", {"gates": gates, "retry": candidate.retry, "champion": champion})
    return f"{candidate.stack}-{verdict}"


def approved(context: Context, candidate: Candidate) -> Progress:
    """In Manual mode a person says so: a tag on the MLflow version, or an annotation on the object."""
    if context.spec.promotion.mode == "Automatic":
        return Passed(with_facts(candidate, approval_token=""))
    token = approval_token(context, candidate)
    candidate = with_facts(candidate, approval_token=token)
    annotations = context.model.metadata.annotations
    tags = _reviewer_tags(context, candidate, token)
    refused_by = tags.get(TAG_REJECTED_BY) or ("an annotation" if annotations.get(REJECT_ANNOTATION) == token else "")
    if refused_by:
        message = f"stack {candidate.stack} was rejected by {refused_by}"
        return Ended(
            "Rejected", Reason.REJECTED_BY_REVIEWER, cut(message), candidate, _known_record(context, candidate)
        )
    if annotations.get(APPROVE_ANNOTATION) == token or tags.get(TAG_APPROVED_BY):
        return Passed(candidate)
    where = f"set the tag {TAG_APPROVED_BY} on version {candidate.model_version} in MLflow, or approve {token}"
    return Waiting(
        Step.AWAITING_APPROVAL, candidate, message=where, requeue_after_s=10, blocked=Reason.AWAITING_APPROVAL
    )


def _reviewer_tags(context: Context, candidate: Candidate, token: str) -> dict[str, str]:
    """A reviewer's tags count only once the version shows that it awaits approval for this very token."""
    version = context.registry.versions.get(candidate.bundle_id) if context.registry else None
    if version is None or version.tags.get(TAG_AWAITING) != token:
        return {}
    return dict(version.tags)


def promoted(context: Context, candidate: Candidate) -> Progress:
    """Scaled to the champion's ready replicas, then the traffic. The alias follows as a projection."""
    record = _known_record(context, candidate)
    stack = _stack(context, record)
    champion = context.observed.stacks.get(context.champion.stack) if context.champion else None
    bounds = context.spec.serving.replicas
    replicas = max(bounds.min, champion.ready_replicas if champion else 0)
    if stack.replicas < replicas:
        scale = ScaleStack(
            stack=record.stack, replicas=replicas, max_replicas=bounds.most and max(bounds.most, replicas)
        )
        return Waiting(Step.PROMOTING, candidate, actions=(scale,), message=f"scaling to {replicas} replicas")
    if stack.ready_replicas < replicas:
        message = f"waiting for {replicas} ready replicas{_lacks(stack)}"
        return Waiting(Step.PROMOTING, candidate, message=message, requeue_after_s=2)
    switch = SwitchTraffic(record=record, observed_version=context.observed.traffic.version)
    return Waiting(Step.PROMOTING, candidate, actions=(switch,), message=f"switching traffic to stack {record.stack}")

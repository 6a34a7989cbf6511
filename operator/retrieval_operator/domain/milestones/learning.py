"""Trained (or imported), then registered."""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import TAG_BUNDLE_ID, TAG_BUNDLE_URI, TAG_REVISION, TAG_SLOT
from retrieval_operator.api.status import Candidate, Step
from retrieval_operator.domain import commands
from retrieval_operator.domain.context import Context, Ended, Passed, Progress, Waiting, failed, with_facts
from retrieval_operator.domain.evidence import BundleReport, Unreadable, read
from retrieval_operator.domain.milestones.work import registry_away, report_of
from retrieval_operator.domain.plan import RegisterVersion


def trained(context: Context, candidate: Candidate) -> Progress:
    """The revision's bundle is complete: bundle.json was reported."""
    wanted = commands.train(context.model, revision=candidate.revision, data_uri=candidate.data_uri)
    report = report_of(
        context,
        candidate,
        Step.TRAINING,
        wanted,
        title=f"revision {candidate.revision}",
        limit=context.spec.promotion.failure_limit,
        given_up=Reason.TRAINING_FAILED,
        tags={TAG_REVISION: candidate.revision, TAG_SLOT: candidate.slot},
    )
    if isinstance(report, Waiting | Ended):
        return report
    try:
        bundle = read(BundleReport, report)
    except Unreadable as error:
        return failed(candidate, Reason.TRAINING_FAILED, f"the reported bundle.json is not readable: {error}")
    uri = commands.bundle_uri(context.model, candidate.revision)
    return Passed(with_facts(candidate, bundle_id=bundle.id, bundle_uri=uri))


def registered(context: Context, candidate: Candidate) -> Progress:
    """One model version per bundle."""
    registry = context.registry
    if registry is None:
        return registry_away(context, Step.REGISTERING, candidate)
    version = registry.versions.get(candidate.bundle_id)
    if version is not None:
        return Passed(with_facts(candidate, model_version=version.number))
    register = RegisterVersion(
        bundle_id=candidate.bundle_id,
        run_id=registry.runs[f"train:{candidate.revision}"].run_id,
        tags={
            TAG_REVISION: candidate.revision,
            TAG_BUNDLE_ID: candidate.bundle_id,
            TAG_BUNDLE_URI: candidate.bundle_uri,
        },
    )
    return Waiting(Step.REGISTERING, candidate, actions=(register,), message="registering the model version")

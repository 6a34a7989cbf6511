"""Measured on held-out members, beside the champion, and judged: what fails here never costs a deployment."""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.status import Candidate, Step
from retrieval_operator.domain import commands, gates
from retrieval_operator.domain.context import (
    Context,
    Ended,
    Passed,
    Progress,
    Waiting,
    cut,
    failed,
    gates_table,
    with_facts,
)
from retrieval_operator.domain.evidence import EvaluationReport, IndexReport, Unreadable, read
from retrieval_operator.domain.identity import evaluation_generation_key, evaluation_key
from retrieval_operator.domain.milestones.work import report_of
from retrieval_operator.domain.workloads import WorkloadStep


def evaluation_indexed(context: Context, candidate: Candidate) -> Progress:
    """The candidate's evaluation generation: the corpus as of the start of the test split."""
    return _indexed(context, candidate, WorkloadStep.INDEX_EVALUATION, candidate.bundle_id, candidate.bundle_uri)


def champion_indexed(context: Context, candidate: Candidate) -> Progress:
    """The champion's evaluation generation over the same data; nothing to do for a first stack."""
    champion = context.champion
    if champion is None:
        return Passed(candidate)
    return _indexed(context, candidate, WorkloadStep.INDEX_CHAMPION, champion.bundle_id, champion.bundle_uri)


def _indexed(context: Context, candidate: Candidate, step: WorkloadStep, bundle_id: str, bundle: str) -> Progress:
    key = _generation_key(context, candidate, bundle_id)
    whose = "candidate" if step is WorkloadStep.INDEX_EVALUATION else "champion"
    about = {"key": key, "bundle_id": bundle_id, "bundle": bundle, "data_uri": candidate.data_uri}
    report = report_of(
        context,
        candidate,
        Step.INDEXING_EVALUATION,
        commands.index(context.model, step, **about),
        first=commands.encode(context.model, step, **about),
        title=f"evaluation index ({whose} {bundle_id})",
        limit=context.spec.promotion.failure_limit,
        given_up=Reason.INDEXING_FAILED,
    )
    if isinstance(report, Waiting | Ended):
        return report
    try:
        generation = read(IndexReport, report)
    except Unreadable as error:
        return failed(candidate, Reason.INDEXING_FAILED, f"the {whose}'s MANIFEST.json is not readable: {error}")
    if (generation.bundle_id, generation.kind) != (bundle_id, "evaluation"):
        found = f"the {whose}'s index is a {generation.kind} one of {generation.bundle_id}"
        return failed(candidate, Reason.INTEGRITY_FAILED, f"{found}, expected an evaluation one of {bundle_id}")
    return Passed(candidate)


def _generation_key(context: Context, candidate: Candidate, bundle_id: str) -> str:
    """Of either bundle's index over the data that the candidate was trained on."""
    return evaluation_generation_key(context.spec, bundle_id, candidate.data_uri, candidate.slot)


def _evaluation(context: Context, candidate: Candidate) -> tuple[str, str, str]:
    """Keys of the evaluation, the candidate's and the champion's generation ("" without champion)."""
    own = _generation_key(context, candidate, candidate.bundle_id)
    other = _generation_key(context, candidate, context.champion.bundle_id) if context.champion else ""
    return evaluation_key(context.spec, own, other, candidate.retry), own, other


def evaluated(context: Context, candidate: Candidate) -> Progress:
    """evaluation.json is there. An evaluation that keeps failing is inconclusive, never a pass and never a verdict."""
    result = _evaluation_report(context, candidate)
    if isinstance(result, Waiting):
        return result
    if isinstance(result, Ended):
        return Ended("Inconclusive", result.reason, result.message, result.candidate)
    return Passed(candidate)


def _evaluation_report(context: Context, candidate: Candidate) -> EvaluationReport | Waiting | Ended:
    key, own, other = _evaluation(context, candidate)
    champion = context.champion
    wanted = commands.evaluate(
        context.model,
        key=key,
        data_uri=candidate.data_uri,
        candidate=(candidate.bundle_uri, commands.generation_uri(context.model, own)),
        champion=(champion.bundle_uri, commands.generation_uri(context.model, other)) if champion else None,
        anew=bool(candidate.retry),
    )
    report = report_of(
        context,
        candidate,
        Step.EVALUATING,
        wanted,
        title=f"evaluation of {candidate.bundle_id}",
        limit=context.spec.promotion.inconclusive_limit,
        given_up=Reason.EVALUATION_FAILED,
    )
    if isinstance(report, Waiting | Ended):
        return report
    try:
        evaluation = read(EvaluationReport, report)
    except Unreadable as error:
        return failed(candidate, Reason.EVALUATION_FAILED, f"evaluation.json is not readable: {error}")
    return _about_the_same(context, candidate, evaluation)


def _about_the_same(context: Context, candidate: Candidate, evaluation: EvaluationReport) -> EvaluationReport | Ended:
    """Evidence about other bundles, other index generations or another time is no evidence."""
    _, own, other = _evaluation(context, candidate)
    expected = [_generation(context, WorkloadStep.INDEX_EVALUATION, own)]
    found = [evaluation.candidate]
    if context.champion is not None:
        expected.append(_generation(context, WorkloadStep.INDEX_CHAMPION, other))
    if evaluation.champion is not None:
        found.append(evaluation.champion)
    said = [(part.bundle_id, part.generation_id, evaluation.as_of) for part in found]
    asked = [(part.bundle_id, part.id, part.as_of) for part in expected]
    if said != asked:
        message = f"evaluation.json is about (bundle, generation, asOf) {said}, expected {asked}"
        return failed(candidate, Reason.EVALUATION_FAILED, message)
    return evaluation


def _generation(context: Context, step: WorkloadStep, key: str) -> IndexReport:
    """The report of an evaluation generation; the milestones before this one have read it."""
    report = context.registry.report(step, key) if context.registry else None
    assert report is not None, "an evaluation follows its index generations"
    return read(IndexReport, report)


def gates_passed(context: Context, candidate: Candidate) -> Progress:
    """The verdict over all gates."""
    evaluation = _evaluation_report(context, candidate)
    assert isinstance(evaluation, EvaluationReport), "the milestone before this one has it"
    verdicts = gates.judge_evaluation(
        evaluation, context.spec.promotion, context.spec.evaluation, context.status.history
    )
    run = context.registry.runs.get(f"eval:{_evaluation(context, candidate)[0]}") if context.registry else None
    judged = with_facts(candidate, gates=verdicts, evaluation_run=run.run_id if run else "")
    match gates.overall(verdicts):
        case "Passed":
            return Passed(judged)
        case "Failed":
            return Ended("Rejected", Reason.GATES_FAILED, cut(gates_table(verdicts)), judged)
        case _:
            return Ended("Inconclusive", Reason.GATES_INCONCLUSIVE, cut(gates_table(verdicts)), judged)

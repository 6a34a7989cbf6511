"""Gate verdicts from evaluation.json: the operator only compares.

Per bound: success and failure are tested separately, so that Inconclusive can exist. A gate's verdict is the worst of
its bounds', the candidate's the worst of its gates' that are not dry runs. Missing evidence is Inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from retrieval_operator.api.spec import Evaluation, Gate, Promotion
from retrieval_operator.api.status import GateVerdict, HistoryEntry
from retrieval_operator.domain.evidence import (
    NOT_PERSONAL,
    EvaluationReport,
    GateEvidence,
    IndexReport,
    VerificationReport,
)

Verdict = Literal["Passed", "Failed", "Inconclusive"]
_WORST_FIRST: tuple[Verdict, ...] = ("Failed", "Inconclusive", "Passed")

# Integrity of an index generation. Norms: float32 rounding of a unit vector is about 1e-7 per component, 1e-3 is far
# beyond it and far below any real defect. Self-hit and recall: gut feeling, above what IVF+PQ with re-ranking reached
# in trials (recall@2000 0.95) and far above a broken index.
MAX_NORM_ERROR = 1e-3
MIN_SELF_HIT = 0.99
MIN_RECALL_AT_SERVED_K = 0.90
# An item without a vector can never be retrieved, and nobody would notice. A build that left one out is broken: it has
# no reason to, so there is no share that would do.
MIN_COVERAGE = 1.0
# A refresh that loses more than half of the corpus is more likely a broken feed than a decision. Gut feeling.
MIN_COUNT_SHARE = 0.5
# A served answer equals direct computation; fp32 through the server is within 1e-4.
MAX_SCORE_ERROR = 1e-3


@dataclass(frozen=True)
class Finding:
    """What one bound says, in a sentence."""

    verdict: Verdict
    message: str


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; of none at all Inconclusive, since nothing was shown."""
    found = set(verdicts)
    return next((verdict for verdict in _WORST_FIRST if verdict in found), "Inconclusive")


def judge_evaluation(
    report: EvaluationReport, promotion: Promotion, settings: Evaluation, history: list[HistoryEntry]
) -> list[GateVerdict]:
    """One verdict per gate of the spec, in its order."""
    evidence = {(entry.metric, entry.k, entry.pool, entry.segment): entry for entry in report.gates}
    best = _best_promoted(history)
    verdicts = []
    for gate in promotion.gates:
        found = evidence.get((gate.metric, gate.k, gate.pool, gate.segment))
        findings = _findings(gate, found, report, settings, best.get(gate.identity))
        verdicts.append(_verdict(gate, found, findings, _without_member(gate, report)))
    return verdicts


def overall(verdicts: list[GateVerdict]) -> Verdict:
    """What the candidate's gates say together; dry runs decide nothing."""
    return worst(verdict.verdict for verdict in verdicts if not verdict.dry_run)


def _verdict(gate: Gate, found: GateEvidence | None, findings: list[Finding], note: str) -> GateVerdict:
    return GateVerdict(
        gate=gate.identity,
        verdict=worst(finding.verdict for finding in findings),
        dry_run=gate.dry_run,
        message="; ".join(filter(None, [*(finding.message for finding in findings), note]))[:1024],
        n=found.n if found else 0,
        value=found.value if found else None,
        shown=_shown(found.value) if found else None,
        champion_value=found.champion_value if found else None,
        delta=found.delta if found else None,
        lower=found.lower if found else None,
        upper=found.upper if found else None,
    )


def _shown(value: float | None) -> str | None:
    """For people who compare a column: always four significant digits, never an exponent."""
    return None if value is None else format(Decimal(f"{value:#.4g}"), "f")


def _without_member(gate: Gate, report: EvaluationReport) -> str:
    """How much of the value the candidate owes to knowing the member; "" when not measured. Decides nothing."""
    wanted = (NOT_PERSONAL, gate.metric, gate.k, gate.pool, gate.segment)
    for row in report.comparisons:
        if (row.baseline, row.metric, row.k, row.pool, row.segment) == wanted:
            numbers = f"{row.delta:+.4f} ({row.lower:+.4f} to {row.upper:+.4f})"
            if row.lower > 0:
                return f"{numbers} above its own item vectors without the member"
            return f"not shown to be personal: {numbers} against its own item vectors without the member"
    return ""


def _findings(
    gate: Gate, found: GateEvidence | None, report: EvaluationReport, settings: Evaluation, best: float | None
) -> list[Finding]:
    unusable = _unusable(found, report, settings)
    if unusable or found is None:
        return [unusable or Finding("Inconclusive", "not measured")]
    findings = []
    if gate.min is not None:
        findings.append(_absolute(found, gate.min))
    if gate.max_regression is not None:
        findings.append(_against_champion(found, gate.max_regression, report, settings))
    if gate.max_drop_from_best is not None:
        known = [value for value in (best, found.champion_value) if value is not None]
        findings.append(_against_best(found, gate.max_drop_from_best, max(known, default=None), report))
    return findings


def _unusable(found: GateEvidence | None, report: EvaluationReport, settings: Evaluation) -> Finding | None:
    """Why these numbers say nothing at all; the first reason that holds, None when they may be looked at."""
    if found is None:
        return Finding("Inconclusive", "evaluation.json has no entry for this gate")
    only_leaks = found.problem == "Leakage" and found.value is not None
    reasons = (
        (report.collapsed, "the encoder collapsed: nearly all vectors are equal, so ranks mean nothing"),
        (found.problem is not None and not only_leaks, f"not measurable: {found.problem}"),
        (found.value is None, "no finite value was measured"),
        (report.leakage.candidate is not None, str(report.leakage.candidate)[:300]),
        (found.n < settings.min_samples, f"{found.n} members, at least {settings.min_samples} needed"),
    )
    return next((Finding("Inconclusive", message) for holds, message in reasons if holds), None)


def _absolute(found: GateEvidence, minimum: Decimal) -> Finding:
    value = _measured(found.value)
    if value < float(minimum):
        return Finding("Failed", f"{value:.4f} is below min {minimum}")
    return Finding("Passed", f"{value:.4f} reaches min {minimum}")


def _against_champion(  # noqa: PLR0911 one case per return reads better than nesting
    found: GateEvidence, margin: Decimal, report: EvaluationReport, settings: Evaluation
) -> Finding:
    if report.champion is None:
        return Finding("Passed", "no champion to compare with")
    if report.leakage.champion is not None:
        return Finding("Inconclusive", report.leakage.champion[:300])
    if found.delta is None or found.lower is None or found.upper is None:
        return Finding("Inconclusive", "the comparison with the champion has no finite bounds")
    few = found.discordant is None or found.discordant < settings.min_discordant
    if few and found.method != "exact":
        return Finding("Inconclusive", f"only {found.discordant or 0} members differ, {settings.min_discordant} needed")
    numbers = f"delta {found.delta:+.4f} (one-sided bounds {found.lower:+.4f} and {found.upper:+.4f})"
    if found.lower >= -float(margin):
        return Finding("Passed", f"{numbers}: not worse than the champion by more than {margin}")
    if found.upper < -float(margin):
        return Finding("Failed", f"{numbers}: worse than the champion by more than {margin}")
    needed = f"; about {found.n_to_decide} members would decide" if found.n_to_decide else ""
    return Finding("Inconclusive", f"{numbers}: {found.n} members cannot decide about a margin of {margin}{needed}")


def _against_best(found: GateEvidence, drop: Decimal, best: float | None, report: EvaluationReport) -> Finding:
    """`best`: of the promoted stacks' values and the champion's; None when there is neither."""
    if best is None:
        return Finding("Passed", "no promoted stack to compare with")
    if report.leakage.champion is not None:
        return Finding("Inconclusive", report.leakage.champion[:300])
    floor = best - float(drop)
    if found.value_lower is None or found.value_upper is None:
        return Finding("Inconclusive", "the value has no finite bounds")
    if found.value_upper < floor:
        return Finding(
            "Failed", f"even the upper bound {found.value_upper:.4f} is below {floor:.4f} (best {best:.4f} - {drop})"
        )
    if _measured(found.value) >= floor:
        return Finding("Passed", f"{found.value:.4f} reaches {floor:.4f} (best {best:.4f} - {drop})")
    return Finding(
        "Inconclusive", f"{found.value:.4f} is below {floor:.4f} (best {best:.4f} - {drop}), within its interval"
    )


def _measured(value: float | None) -> float:
    assert value is not None, "unusable evidence is filtered before bounds are looked at"
    return value


def _best_promoted(history: list[HistoryEntry]) -> Mapping[str, float]:
    best: dict[str, float] = {}
    for entry in history:
        if entry.outcome != "Promoted":
            continue
        for gate in entry.gates:
            if gate.value is not None:
                best[gate.gate] = max(gate.value, best.get(gate.gate, gate.value))
    return best


def judge_generation(report: IndexReport, champion_count: int | None) -> list[Finding]:
    """Integrity gates of an index generation; an empty list means that nothing is wrong.

    `champion_count`: items in the champion's generation, None without a champion. A check that was not measured fails.
    """
    checks, problems = report.checks, []
    if report.count == 0:
        problems.append("it has no items")
    if champion_count and report.count < MIN_COUNT_SHARE * champion_count:
        problems.append(f"it has {report.count} items, the champion's {champion_count}: more than half are gone")
    if not checks.finite:
        problems.append("some vectors are not finite")
    for name, value, bound, above in (
        ("the largest deviation of a norm from 1", checks.max_norm_error, MAX_NORM_ERROR, False),
        ("the share of items that find themselves", checks.self_hit, MIN_SELF_HIT, True),
        ("the share of items that have a vector", checks.coverage, MIN_COVERAGE, True),
        ("recall against exact search at the served k", checks.recall_at_served_k, MIN_RECALL_AT_SERVED_K, True),
    ):
        if value is None or (value < bound if above else value > bound):
            shown = "unknown" if value is None else f"{value:.4f}"
            problems.append(f"{name} is {shown}, {'at least' if above else 'at most'} {bound} expected")
    return [Finding("Failed", problem) for problem in problems]


def judge_verification(report: VerificationReport, max_latency_p99_ms: int | None) -> list[Finding]:
    """What is wrong with a dark stack's answers; an empty list means nothing."""
    problems = []
    if report.asked == 0:
        problems.append("no member was asked")
    if report.matched < report.asked:
        first = f" ({report.mismatches[0]})" if report.mismatches else ""
        problems.append(
            f"{report.asked - report.matched} of {report.asked} answers differ from direct computation{first}"
        )
    if report.max_score_error is None or report.max_score_error > MAX_SCORE_ERROR:
        problems.append(f"scores differ from direct computation by {report.max_score_error}, at most {MAX_SCORE_ERROR}")
    if max_latency_p99_ms is not None:
        p99 = report.latency_ms.p99 if report.latency_ms else None
        if p99 is None or p99 > max_latency_p99_ms:
            problems.append(f"p99 latency is {p99} ms, at most {max_latency_p99_ms} ms allowed")
    return [Finding("Failed", problem) for problem in problems]

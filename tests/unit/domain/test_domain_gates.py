"""Gate verdicts: success and failure are tested apart, missing evidence is inconclusive, dry runs decide nothing."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_operator.api.spec import Evaluation, Promotion
from retrieval_operator.api.status import CandidateKind, GateVerdict, HistoryEntry
from retrieval_operator.domain.evidence import EvaluationReport, IndexReport, Unreadable, VerificationReport, read
from retrieval_operator.domain.gates import judge_evaluation, judge_generation, judge_verification, overall

ABSOLUTE = {"min": "0.20"}
BOTH = {"min": "0.20", "maxRegression": "0.02"}
GOOD = {"n": 1000, "discordant": 200, "value": 0.4, "valueLower": 0.37, "valueUpper": 0.43, "method": "bootstrap"}
COMPARED = GOOD | {"championValue": 0.4, "delta": 0.0, "lower": -0.01, "upper": 0.01}

ALONE = {"metric": "recall", "k": 10, "pool": "matched", "segment": "all"}


def leakage(candidate: str | None = None, champion: str | None = None) -> dict[str, str | None]:
    return {"candidate": candidate, "champion": champion}


def report(entry: dict[str, Any] | None, *, champion: bool = True, **more: Any) -> EvaluationReport:
    where = {"metric": "recall", "k": 10, "pool": "matched", "segment": "all"}
    ids = {"bundleId": "b-1", "generationId": "g-1"}
    document = {
        "formatVersion": 1,
        "kind": "evaluation",
        "asOf": 1,
        "candidate": ids,
        "champion": ids if champion else None,
        "leakage": {"candidate": None, "champion": None},
        "collapsed": False,
        "gates": [] if entry is None else [where | entry],
    }
    return read(EvaluationReport, document | more)


CASES: dict[str, tuple[dict[str, Any], EvaluationReport, str, str]] = {
    "a first stack passes on its absolute bound": (ABSOLUTE, report(GOOD, champion=False), "Passed", "reaches min"),
    "a first stack has nothing to be compared with": (BOTH, report(GOOD, champion=False), "Passed", "no champion"),
    "below min fails": (ABSOLUTE, report(GOOD | {"value": 0.19}), "Failed", "below min"),
    "exactly min passes": (ABSOLUTE, report(GOOD | {"value": 0.20}), "Passed", "reaches min"),
    "a lower bound within the margin passes": (BOTH, report(COMPARED), "Passed", "not worse"),
    "a lower bound exactly at the margin passes": (BOTH, report(COMPARED | {"lower": -0.02}), "Passed", "not worse"),
    "an upper bound beyond the margin fails": (
        BOTH,
        report(COMPARED | {"delta": -0.05, "lower": -0.07, "upper": -0.03}),
        "Failed",
        "worse than the champion",
    ),
    "an interval around the margin is inconclusive and says which n would decide": (
        BOTH,
        report(COMPARED | {"delta": -0.01, "lower": -0.03, "upper": 0.01, "nToDecide": 4000}),
        "Inconclusive",
        "about 4000 members",
    ),
    "too few members are inconclusive": (ABSOLUTE, report(GOOD | {"n": 299}), "Inconclusive", "at least 300"),
    "few differing members are inconclusive under a bootstrap": (
        BOTH,
        report(COMPARED | {"discordant": 29}),
        "Inconclusive",
        "only 29 members differ",
    ),
    "few differing members may pass with exact bounds": (
        BOTH,
        report(COMPARED | {"discordant": 0, "method": "exact"}),
        "Passed",
        "not worse",
    ),
    "no entry is inconclusive": (ABSOLUTE, report(None), "Inconclusive", "no entry"),
    "a value that is not finite is inconclusive": (
        ABSOLUTE,
        report(GOOD | {"value": None, "problem": "NonFinite"}),
        "Inconclusive",
        "NonFinite",
    ),
    "a missing value without a named problem is inconclusive": (
        ABSOLUTE,
        report(GOOD | {"value": None}),
        "Inconclusive",
        "no finite value",
    ),
    "a collapsed encoder is inconclusive even with a perfect value": (
        ABSOLUTE,
        report(GOOD | {"value": 1.0}, collapsed=True),
        "Inconclusive",
        "collapsed",
    ),
    "a champion trained on the test split makes a comparison inconclusive": (
        BOTH,
        report(COMPARED | {"problem": "Leakage"}, leakage=leakage(champion="the champion saw the test split")),
        "Inconclusive",
        "the champion saw the test split",
    ),
    "a champion trained on the test split takes nothing from an absolute bound": (
        ABSOLUTE,
        report(COMPARED | {"problem": "Leakage"}, leakage=leakage(champion="the champion saw the test split")),
        "Passed",
        "reaches min",
    ),
    "a champion trained on the test split does not save a candidate below min": (
        BOTH,
        report(COMPARED | {"value": 0.1, "problem": "Leakage"}, leakage=leakage(champion="the champion saw it")),
        "Failed",
        "below min",
    ),
    "a champion trained on the test split says nothing about a drop from the best": (
        ABSOLUTE | {"maxDropFromBest": "0.05"},
        report(COMPARED | {"problem": "Leakage"}, leakage=leakage(champion="the champion saw the test split")),
        "Inconclusive",
        "the champion saw the test split",
    ),
    "a first stack that was trained on the test split is inconclusive, however good": (
        ABSOLUTE,
        report(GOOD | {"problem": "Leakage"}, champion=False, leakage=leakage(candidate="it saw the test split")),
        "Inconclusive",
        "it saw the test split",
    ),
    "a candidate trained on the test split is inconclusive beside a champion, even below min": (
        ABSOLUTE,
        report(COMPARED | {"value": 0.1, "problem": "Leakage"}, leakage=leakage(candidate="it saw the test split")),
        "Inconclusive",
        "it saw the test split",
    ),
    "a candidate and a champion trained on the test split are inconclusive": (
        BOTH,
        report(COMPARED | {"problem": "Leakage"}, leakage=leakage("it saw the test split", "so did the champion")),
        "Inconclusive",
        "it saw the test split",
    ),
    "a candidate's own lead is said, and decides nothing": (
        ABSOLUTE,
        report(GOOD, comparisons=[ALONE | {"baseline": "notPersonal", "delta": 0.3, "lower": 0.28, "upper": 0.32}]),
        "Passed",
        "+0.3000 (+0.2800 to +0.3200) above its own item vectors without the member",
    ),
    "a candidate that need not know the member passes, and everybody reads it": (
        ABSOLUTE,
        report(GOOD, comparisons=[ALONE | {"baseline": "notPersonal", "delta": 0.0, "lower": -0.01, "upper": 0.01}]),
        "Passed",
        "not shown to be personal",
    ),
    "a comparison without bounds is inconclusive": (BOTH, report(COMPARED | {"lower": None}), "Inconclusive", "bounds"),
    "failing the absolute bound wins over passing the comparison": (
        BOTH,
        report(COMPARED | {"value": 0.1}),
        "Failed",
        "below min",
    ),
}


@pytest.mark.parametrize("title", CASES)
def test_a_gate(title: str) -> None:
    gate, evaluation, verdict, words = CASES[title]
    promotion = Promotion.model_validate({"gates": [gate]})
    [found] = judge_evaluation(evaluation, promotion, Evaluation(), [])
    assert (found.verdict, words in found.message) == (verdict, True), found


def test_only_the_gates_own_metric_and_segment_without_the_member_are_spoken_of() -> None:
    equal = {"baseline": "notPersonal", "delta": 0.0, "lower": -0.01, "upper": 0.01}
    others = [ALONE | equal | changed for changed in ({"baseline": "popularity"}, {"segment": "new"}, {"k": 20})]
    promotion = Promotion.model_validate({"gates": [ABSOLUTE]})
    [found] = judge_evaluation(report(GOOD, comparisons=others), promotion, Evaluation(), [])
    assert found.message == "0.4000 reaches min 0.20"


def test_a_dry_run_that_fails_does_not_stop_a_promotion_but_is_reported() -> None:
    gates = [{"min": "0.20"}, {"min": "0.99", "segment": "all", "k": 10, "pool": "uniform", "dryRun": True}]
    evaluation = report(GOOD)
    more = evaluation.gates[0].model_copy(update={"pool": "uniform"})
    evaluation = evaluation.model_copy(update={"gates": (*evaluation.gates, more)})
    verdicts = judge_evaluation(evaluation, Promotion.model_validate({"gates": gates}), Evaluation(), [])
    assert [(v.verdict, v.dry_run) for v in verdicts] == [("Passed", False), ("Failed", True)]
    assert overall(verdicts) == "Passed"


def test_no_verdict_at_all_is_inconclusive() -> None:
    assert overall([]) == "Inconclusive"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.45192648754101267, "0.4519"), (0.5, "0.5000"), (1.0, "1.000"), (0.0, "0.000"), (1.2345e-05, "0.00001234")],
)
def test_a_value_is_shown_in_four_digits_and_kept_whole(value: float, shown: str) -> None:
    [verdict] = judge_evaluation(
        report(GOOD | {"value": value}), Promotion.model_validate({"gates": [{"min": "0.1"}]}), Evaluation(), []
    )
    assert (verdict.shown, verdict.value) == (shown, value)


def promoted(value: float) -> HistoryEntry:
    gate = GateVerdict(gate="recall@10 (matched, all)", verdict="Passed", message="", value=value)
    return HistoryEntry(
        id="r", kind=CandidateKind.REVISION, revision="r", outcome="Promoted", reason="Promoted", at=1, gates=[gate]
    )


@pytest.mark.parametrize(
    ("value", "upper", "verdict"),
    [(0.47, 0.50, "Passed"), (0.44, 0.46, "Inconclusive"), (0.40, 0.43, "Failed")],
)
def test_small_losses_do_not_add_up_against_the_best_promoted(value: float, upper: float, verdict: str) -> None:
    """The best of the history was 0.50, the allowed drop 0.05."""
    promotion = Promotion.model_validate({"gates": [{"min": "0.20", "maxDropFromBest": "0.05"}]})
    evaluation = report(GOOD | {"value": value, "valueLower": value - 0.03, "valueUpper": upper})
    [found] = judge_evaluation(evaluation, promotion, Evaluation(), [promoted(0.46), promoted(0.50)])
    assert found.verdict == verdict, found.message


def test_a_report_with_infinity_is_unreadable_not_passed() -> None:
    with pytest.raises(Unreadable, match="value"):
        report(GOOD | {"value": float("inf")})


def generation(**checks: Any) -> IndexReport:
    sound = {"finite": True, "maxNormError": 1e-6, "selfHit": 1.0, "recallAtServedK": 0.97, "coverage": 1.0}
    document = {"formatVersion": 1, "id": "g-0123456789abcdef", "kind": "serving", "bundleId": "b-0123456789abcdef"}
    numbers = {"asOf": 1, "count": checks.pop("count", 100), "servedK": 10, "checks": sound | checks}
    return read(IndexReport, document | numbers)


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ({}, ""),
        ({"finite": False}, "not finite"),
        ({"maxNormError": 0.1}, "norm"),
        ({"selfHit": 0.5}, "find themselves"),
        ({"recallAtServedK": 0.62}, "recall against exact search"),
        ({"recallAtServedK": None}, "unknown"),
        ({"coverage": 0.999}, "have a vector"),
        ({"coverage": None}, "have a vector is unknown"),
        ({"count": 0}, "no items"),
        ({"count": 49}, "more than half are gone"),
    ],
)
def test_the_integrity_of_an_index_generation(checks: dict[str, Any], words: str) -> None:
    findings = judge_generation(generation(**checks), champion_count=100)
    assert words in "; ".join(finding.message for finding in findings) if words else not findings


def verification(**more: Any) -> VerificationReport:
    document = {"formatVersion": 1, "kind": "verification", "bundleId": "b", "generationId": "g", "asked": 50}
    latency = {"p50": 3.0, "p95": 8.0, "p99": 9.0}
    return read(VerificationReport, document | {"matched": 50, "maxScoreError": 1e-6, "latencyMs": latency} | more)


@pytest.mark.parametrize(
    ("found", "bound", "words"),
    [
        ({}, None, ""),
        ({}, 10, ""),
        ({}, 8, "p99 latency"),
        ({"latencyMs": None}, 8, "p99 latency"),
        ({"asked": 0, "matched": 0}, None, "no member was asked"),
        ({"matched": 49, "mismatches": ["member m1: another top-k"]}, None, "member m1"),
        ({"maxScoreError": 0.5}, None, "scores differ"),
        ({"maxScoreError": None}, None, "scores differ"),
    ],
)
def test_the_answers_of_a_dark_stack(found: dict[str, Any], bound: int | None, words: str) -> None:
    findings = judge_verification(verification(**found), bound)
    assert words in "; ".join(finding.message for finding in findings) if words else not findings

"""One object in the middle of its life, for everything the command line shows."""

from __future__ import annotations

import pytest

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import (
    Candidate,
    CandidateKind,
    Champion,
    GateVerdict,
    HistoryEntry,
    RetrievalModelStatus,
    StackRecord,
    Step,
)

NOW = 1_700_000_000
MINUTE, HOUR, DAY = 60, 3600, 86_400

MANIFEST = {
    "apiVersion": "retrieval-operator.io/v1alpha1",
    "kind": "RetrievalModel",
    "metadata": {"name": "feed", "uid": "u-1", "generation": 3, "creationTimestamp": NOW - 3 * DAY},
    "spec": {
        "storage": {"uri": "/var/retrieval"},
        "data": {"uri": "/data/feed-3", "revision": "day-3"},
        "model": {"base": "preset:tiny"},
        "promotion": {
            "mode": "Manual",
            "gates": [
                {"k": 10, "pool": "matched", "min": "0.30", "maxRegression": "0.02"},
                {"k": 100, "pool": "corpus", "maxRegression": "0.03", "dryRun": True},
            ],
        },
    },
}


def _record(number: int) -> StackRecord:
    return StackRecord(
        stack=f"s-{number:04d}",
        bundle_id=f"b-{number:016d}",
        bundle_uri=f"/var/retrieval/default/feed/revisions/r{number}/bundle",
        generation_id=f"g-{number:016d}",
        generation_uri=f"/var/retrieval/default/feed/indexes/k{number}",
        generation_key=f"k{number}",
        serving_hash="5e121",
        revision=f"r{number}",
        model_version=str(number),
        data_uri=f"/data/feed-{number}",
    )


def _gate(verdict: str, value: float, champion: float | None) -> GateVerdict:
    delta = None if champion is None else value - champion
    return GateVerdict(
        gate="recall@10 (matched, all)",
        verdict=verdict,  # type: ignore[arg-type]
        message="what the verdict rests on",
        n=1200,
        value=value,
        champion_value=champion,
        delta=delta,
        lower=None if delta is None else delta - 0.012,
        upper=None if delta is None else delta + 0.012,
    )


def _condition(kind: ConditionType, status: str, reason: Reason, message: str, age: int) -> Condition:
    return Condition(
        type=kind,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        observed_generation=3,
        last_transition_time=NOW - age,
    )


@pytest.fixture
def now() -> int:
    return NOW


@pytest.fixture
def fresh() -> RetrievalModel:
    """Applied a moment ago, seen by no controller."""
    return parse_manifest(MANIFEST, "test")


@pytest.fixture
def busy(fresh: RetrievalModel) -> RetrievalModel:
    """A champion serves, a candidate awaits approval, one was refused before."""
    dry = GateVerdict(
        gate="recall@100 (corpus, all)",
        verdict="Inconclusive",
        dry_run=True,
        message="211 members, at least 300 needed",
    )
    status = RetrievalModelStatus(
        observed_generation=3,
        phase="AwaitingApproval",
        address="http://127.0.0.1:8600",
        conditions=[
            _condition(ConditionType.READY, "True", Reason.CHAMPION_SERVING, "Stack s-0002 serves.", 2 * DAY),
            _condition(ConditionType.GATES_PASSED, "True", Reason.SUCCEEDED, "All gates passed.", 7 * MINUTE),
            _condition(ConditionType.PROMOTED, "False", Reason.AWAITING_APPROVAL, "A person is asked.", 5 * MINUTE),
        ],
        champion=Champion(
            **_record(2).model_dump(),
            promoted_at=NOW - 2 * DAY,
            token=f"s-0002@{NOW - 2 * DAY}",
            baking_until=NOW - 2 * DAY + HOUR,
            gates=[_gate("Passed", 0.405, 0.391)],
        ),
        candidate=Candidate(
            id="r3",
            kind=CandidateKind.REVISION,
            revision="r3",
            generation=3,
            step=Step.AWAITING_APPROVAL,
            started_at=NOW - 40 * MINUTE,
            step_started_at=NOW - 5 * MINUTE,
            data_uri="/data/feed-3",
            bundle_id="b-0000000000000003",
            stack="s-0003",
            attempts={"train-r3": 1, "eval-r3": 2},
            gates=[_gate("Passed", 0.421, 0.405), dry],
            message="Stack s-0003 waits for approval.",
        ),
        history=[
            HistoryEntry(
                id="r9",
                kind=CandidateKind.REVISION,
                revision="r9",
                outcome="Rejected",
                reason=Reason.GATES_FAILED,
                message="recall@10 (matched, all) Failed: 0.1100 is below min 0.30",
                at=NOW - DAY,
                gates=[_gate("Failed", 0.110, 0.405)],
            ),
            HistoryEntry(
                id="r2",
                kind=CandidateKind.REVISION,
                revision="r2",
                outcome="Promoted",
                reason=Reason.PROMOTED,
                at=NOW - 2 * DAY,
                record=_record(2),
            ),
        ],
    )
    return fresh.model_copy(update={"status": status})

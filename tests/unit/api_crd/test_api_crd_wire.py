"""A status survives the way to Kubernetes and back, and has no integers where people expect times."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import Metadata
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
from retrieval_operator.api.types import LATEST_TIME, rfc3339
from retrieval_operator.api.wire import from_wire, to_wire

TIMES = st.integers(0, LATEST_TIME)
WORDS = st.text(max_size=8)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)

GATES = st.lists(
    st.builds(
        GateVerdict,
        gate=WORDS,
        verdict=st.sampled_from(["Passed", "Failed", "Inconclusive"]),
        message=WORDS,
        n=st.integers(0, 10**6),
        value=NUMBERS,
        delta=NUMBERS,
    ),
    max_size=2,
)
RECORD_WORDS = ["stack", "bundle_id", "bundle_uri", "generation_id", "generation_uri", "generation_key"]
RECORD_WORDS += ["serving_hash", "revision"]
RECORD = dict.fromkeys([*RECORD_WORDS, "slot", "data_uri"], WORDS) | {
    "as_of": st.none() | TIMES,
    "serving": st.dictionaries(WORDS, st.integers() | WORDS | st.booleans(), max_size=2),
}
CONDITIONS = st.lists(
    st.builds(
        Condition,
        type=st.sampled_from(ConditionType),
        status=st.sampled_from(["True", "False", "Unknown"]),
        reason=st.sampled_from(Reason),
        message=WORDS,
        observed_generation=st.integers(0, 10**6),
        last_transition_time=TIMES,
    ),
    max_size=2,
)
CHAMPIONS = st.builds(Champion, **RECORD, promoted_at=TIMES, baking_until=TIMES, gates=GATES)
CANDIDATES = st.builds(
    Candidate,
    id=WORDS,
    kind=st.sampled_from(CandidateKind),
    revision=WORDS,
    generation=st.integers(0, 10**6),
    step=st.sampled_from(Step),
    started_at=TIMES,
    step_started_at=TIMES,
    attempts=st.dictionaries(WORDS, st.integers(0, 10), max_size=2),
    gates=GATES,
    overdue_since=st.none() | TIMES,
    blocked_since=st.none() | TIMES,
)
ENTRIES = st.builds(
    HistoryEntry,
    id=WORDS,
    kind=st.sampled_from(CandidateKind),
    revision=WORDS,
    outcome=st.sampled_from(["Promoted", "Failed"]),
    reason=st.sampled_from(Reason),
    at=TIMES,
    gates=GATES,
    step=st.none() | st.sampled_from(Step),
    record=st.none() | st.builds(StackRecord, **RECORD),
)
STATUSES = st.builds(
    RetrievalModelStatus,
    observed_generation=st.integers(0, 10**6),
    conditions=CONDITIONS,
    champion=st.none() | CHAMPIONS,
    candidate=st.none() | CANDIDATES,
    history=st.lists(ENTRIES, max_size=2),
    immutable=st.dictionaries(WORDS, WORDS, max_size=2),
)


@settings(max_examples=100)
@given(STATUSES)
def test_a_status_survives_the_way_to_kubernetes_and_back(status: RetrievalModelStatus) -> None:
    assert from_wire(to_wire(status)) == status


@settings(max_examples=100)
@given(STATUSES)
def test_on_this_machine_a_status_survives_with_integers(status: RetrievalModelStatus) -> None:
    assert RetrievalModelStatus.model_validate(status.document()) == status


def test_every_time_of_a_full_status_is_written_as_rfc_3339() -> None:
    gates = [GateVerdict(gate="g", verdict="Passed", message="")]
    record = dict.fromkeys(RECORD_WORDS, "x")
    status = RetrievalModelStatus(
        conditions=[
            Condition(
                type=ConditionType.READY,
                status="True",
                reason=Reason.CHAMPION_SERVING,
                observed_generation=7,
                last_transition_time=1,
            )
        ],
        champion=Champion(**record, as_of=2, promoted_at=3, baking_until=4, gates=gates),
        candidate=Candidate(
            id="c",
            kind=CandidateKind.REVISION,
            revision="r",
            generation=7,
            started_at=5,
            step_started_at=6,
            overdue_since=7,
            blocked_since=8,
        ),
        history=[
            HistoryEntry(
                id="h",
                kind=CandidateKind.REVISION,
                revision="r",
                outcome="Promoted",
                reason=Reason.PROMOTED,
                at=9,
                record=StackRecord(**record, as_of=10),
            )
        ],
    )
    written = dict(leaves(to_wire(status)))
    times = {path: value for path, value in written.items() if re.search(r"(Time|At|Until|Since|asOf|\.at)$", path)}
    assert times == {
        "conditions.lastTransitionTime": "1970-01-01T00:00:01Z",
        "champion.asOf": "1970-01-01T00:00:02Z",
        "champion.promotedAt": "1970-01-01T00:00:03Z",
        "champion.bakingUntil": "1970-01-01T00:00:04Z",
        "candidate.startedAt": "1970-01-01T00:00:05Z",
        "candidate.stepStartedAt": "1970-01-01T00:00:06Z",
        "candidate.overdueSince": "1970-01-01T00:00:07Z",
        "candidate.blockedSince": "1970-01-01T00:00:08Z",
        "history.at": "1970-01-01T00:00:09Z",
        "history.record.asOf": "1970-01-01T00:00:10Z",
    }
    in_the_domain = dict(leaves(status.document()))
    assert [in_the_domain[path] for path in times] == list(range(1, 11))


def test_an_empty_document_is_an_empty_status() -> None:
    assert from_wire({}) == RetrievalModelStatus()


def test_a_field_of_a_newer_operator_is_left_out() -> None:
    assert from_wire({"phase": "Live", "mood": "good"}) == RetrievalModelStatus(phase="Live")


READ = {
    "as we write it": ("2026-01-31T12:00:00Z", 1769860800),
    "with an offset": ("2026-01-31T13:00:00+01:00", 1769860800),
    "with a fraction, which is cut off": ("2026-01-31T12:00:00.999999Z", 1769860800),
    "the latest": ("9999-12-31T23:59:59Z", LATEST_TIME),
}


@pytest.mark.parametrize("title", READ)
def test_a_time_is_read(title: str) -> None:
    text, seconds = READ[title]
    assert condition_at(text).last_transition_time == seconds


@pytest.mark.parametrize("text", ["", "soon", "2026-01-31", "2026-01-31T12:00:00", "1769860800"])
def test_what_is_not_a_time_with_a_zone_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="expected a time with a zone such as 2026-01-31T12:00:00Z"):
        condition_at(text)


@given(TIMES)
def test_a_time_survives_being_written_and_read(seconds: int) -> None:
    assert condition_at(rfc3339(seconds)).last_transition_time == seconds


def test_the_times_of_a_kubernetes_object_are_read() -> None:
    metadata = Metadata.model_validate(
        {"name": "feed", "creationTimestamp": "2026-01-31T12:00:00Z", "deletionTimestamp": "2026-01-31T12:00:01Z"}
    )
    assert (metadata.creation_timestamp, metadata.deletion_timestamp) == (1769860800, 1769860801)


def condition_at(time: Any) -> Condition:
    return Condition.model_validate(
        {
            "type": "Ready",
            "status": "True",
            "reason": "Promoted",
            "observedGeneration": 1,
            "lastTransitionTime": time,
        }
    )


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]

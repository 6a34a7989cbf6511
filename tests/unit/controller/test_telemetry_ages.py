"""What Prometheus sees of every object: its conditions, how old what serves is; and the log lines of libraries."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from retrieval_operator.api.conditions import Condition, ConditionStatus, ConditionType, Reason
from retrieval_operator.api.status import (
    Candidate,
    CandidateKind,
    Champion,
    HistoryEntry,
    RetrievalModelStatus,
    StackRecord,
    Step,
)
from retrieval_operator.telemetry import ObjectStates, Statuses, configure_foreign_logging

NOW = 1_700_000_000
HOUR = 3600


def record(stack: str, generation: str, as_of: int | None) -> dict[str, Any]:
    return {
        "stack": stack,
        "bundle_id": "b",
        "bundle_uri": "/b",
        "generation_id": generation,
        "generation_uri": "/g",
        "generation_key": "k",
        "serving_hash": "h",
        "revision": "r",
        "as_of": as_of,
    }


def champion(stack: str, generation: str, *, promoted_at: int, as_of: int | None) -> Champion:
    return Champion(**record(stack, generation, as_of), promoted_at=promoted_at, baking_until=promoted_at)


def promotion(stack: str, generation: str, at: int, outcome: str = "Promoted") -> HistoryEntry:
    return HistoryEntry(
        id=stack,
        kind=CandidateKind.REVISION,
        revision="r",
        outcome=outcome,
        reason=Reason.PROMOTED,
        at=at,
        record=StackRecord(**record(stack, generation, None)),
    )


def scraped(statuses: Statuses) -> list[str]:
    registry = CollectorRegistry()
    registry.register(ObjectStates(statuses, lambda: NOW))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def ages(status: RetrievalModelStatus) -> dict[str, float]:
    lines = scraped(lambda: [("ml", "feed", status)])
    labelled = '_age_seconds{name="feed",namespace="ml"}'
    assert all(labelled in line for line in lines)
    return {line.split("_age_")[0].rpartition("champion_")[2]: float(line.split()[1]) for line in lines}


def test_an_object_without_a_champion_has_no_ages() -> None:
    assert ages(RetrievalModelStatus()) == {}


def test_data_is_as_old_as_the_newest_interaction_and_an_index_as_its_promotion() -> None:
    status = RetrievalModelStatus(champion=champion("s1", "g1", promoted_at=NOW - HOUR, as_of=NOW - 5 * HOUR))
    assert ages(status) == {"data": 5 * HOUR, "index": HOUR}


def test_data_of_unknown_age_has_none() -> None:
    status = RetrievalModelStatus(champion=champion("s1", "g1", promoted_at=NOW - HOUR, as_of=None))
    assert ages(status) == {"index": HOUR}


def test_neither_a_rollback_nor_another_server_makes_an_index_young_again() -> None:
    back = champion("s1", "g1", promoted_at=NOW, as_of=NOW - 50 * HOUR)
    history = [
        promotion("s3", "g1", NOW - 40 * HOUR, "RolledBack"),  # never counted: it was taken back
        promotion("s2", "g2", NOW - 10 * HOUR),
        promotion("s0", "g1", NOW - 30 * HOUR),  # the same index behind an older server
    ]
    assert ages(RetrievalModelStatus(champion=back, history=history))["index"] == 30 * HOUR


def condition(kind: ConditionType, status: ConditionStatus) -> Condition:
    return Condition(type=kind, status=status, reason=Reason.TRAINING, observed_generation=1, last_transition_time=NOW)


def test_a_condition_has_one_series_for_the_status_it_has_now_and_none_once_the_object_is_gone() -> None:
    objects = {"feed": [condition(ConditionType.READY, "False"), condition(ConditionType.GATES_PASSED, "Unknown")]}

    def statuses() -> list[tuple[str, str, RetrievalModelStatus]]:
        return [("ml", name, RetrievalModelStatus(conditions=found)) for name, found in objects.items()]

    labels = 'name="feed",namespace="ml"'
    assert scraped(statuses) == [
        f'retrieval_operator_condition{{{labels},status="False",type="Ready"}} 1.0',
        f'retrieval_operator_condition{{{labels},status="Unknown",type="GatesPassed"}} 1.0',
    ]
    objects["feed"] = [condition(ConditionType.READY, "True")]
    assert scraped(statuses) == [f'retrieval_operator_condition{{{labels},status="True",type="Ready"}} 1.0']
    del objects["feed"]
    assert scraped(statuses) == []


def test_a_candidate_has_a_series_for_the_step_it_is_at_and_none_once_it_is_over() -> None:
    waits = Candidate(
        id="1a2b3c4d",
        kind=CandidateKind.REVISION,
        revision="1a2b3c4d",
        generation=1,
        step=Step.AWAITING_APPROVAL,
        started_at=NOW - 5 * HOUR,
        step_started_at=NOW - HOUR,
    )
    labels = 'kind="Revision",name="feed",namespace="ml",step="AwaitingApproval"'
    expected = f"retrieval_operator_candidate_step_age_seconds{{{labels}}} {float(HOUR)}"
    assert scraped(lambda: [("ml", "feed", RetrievalModelStatus(candidate=waits))]) == [expected]
    assert scraped(lambda: [("ml", "feed", RetrievalModelStatus())]) == []


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_warnings_of_libraries_are_json_lines_like_ours(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_foreign_logging(stream)
    logging.getLogger("kopf.reactor").info("nobody needs this")
    try:
        raise ValueError("cause")
    except ValueError:
        logging.getLogger("kopf.reactor").warning("the stream %s ended", "pods", exc_info=True)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["logger"]) == ("the stream pods ended", "warning", "kopf.reactor")
    assert "ValueError: cause" in said["exception"]

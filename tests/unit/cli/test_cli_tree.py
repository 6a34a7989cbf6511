"""What the lines of the status tree say; whole trees are in tests/golden/cli."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import HistoryEntry, StackRecord, Step
from retrieval_operator.cli.output import as_text
from retrieval_operator.cli.tree import status_tree
from retrieval_operator.cli.views import Description
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep


def lines(now: int, model: RetrievalModel, **view: Any) -> list[str]:
    """Without the guides."""
    shown = as_text([status_tree(Description(model=model, **view), now)])
    return [line.lstrip("│├└─ ") for line in shown.splitlines()]


def changed(model: RetrievalModel, **status: object) -> RetrievalModel:
    return model.model_copy(update={"status": model.status.model_copy(update=status)})


def candidate(model: RetrievalModel, **fields: object) -> RetrievalModel:
    assert model.status.candidate is not None
    return changed(model, candidate=model.status.candidate.model_copy(update=fields))


def condition(type_: ConditionType, status: str, reason: Reason, message: str) -> Condition:
    return Condition(
        type=type_,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        observed_generation=3,
        last_transition_time=1,
    )


def work(step: WorkloadStep, key: str = "k3", attempt: int = 1, **fields: Any) -> WorkloadObserved:
    known = {"state": "Running", "started_at": 1_699_999_940 + attempt, **fields}
    return WorkloadObserved(name=f"feed-{key}-{step}-{attempt}", step=step, key=key, attempt=attempt, **known)


def stack(model: RetrievalModel, **fields: Any) -> StackObserved:
    assert model.status.champion is not None
    record = StackRecord.model_validate(model.status.champion.document())
    known = {"ready_replicas": 1, "replicas": 2, "address": "", "created_at": 1, **fields}
    return StackObserved(record=record, **known)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "1 of 2 servers ready"),
        ({"ready_replicas": 0, "waits_for": "pod a waits for a node"}, "0 of 2 servers ready: pod a waits for a node"),
        ({"failed": "exit code 65", "waits_for": "a node"}, "1 of 2 servers ready: exit code 65"),
        ({"ready_replicas": 2, "waits_for": "a third"}, "2 of 2 servers ready"),
        ({"ready_replicas": 3, "max_replicas": 5}, "3 of 2 to 5 servers ready"),
    ],
)
def test_servers_are_counted_and_what_they_lack_is_said(
    busy: RetrievalModel, now: int, fields: dict[str, Any], sentence: str
) -> None:
    assert sentence in lines(now, busy, stacks={"s-0002": stack(busy, **fields)})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "feed-k3-train-1 is running for 59s"),
        ({"state": "Succeeded", "finished_at": 1_700_000_001}, "feed-k3-train-1 took 60s"),
        ({"state": "Failed", "reason": "Stopped"}, "feed-k3-train-1 was stopped"),
        (
            {"state": "Failed", "exit_code": 69, "message": "loss is nan"},
            "failed with exit code 69 (diverged): loss is",
        ),
        ({"state": "Failed"}, "feed-k3-train-1 was lost"),
    ],
)
def test_each_attempt_says_how_it_is(busy: RetrievalModel, now: int, fields: dict[str, Any], sentence: str) -> None:
    model = candidate(busy, step=Step.TRAINING, attempts={"train-k3": 1})
    assert any(sentence in line for line in lines(now, model, workloads=[work(WorkloadStep.TRAIN, **fields)]))


def test_attempts_of_others_and_those_before_a_retry_are_left_out(busy: RetrievalModel, now: int) -> None:
    model = candidate(busy, step=Step.TRAINING, attempts={"train-k3": 2}, ignored_attempts={"train-k3": 1})
    attempts = [
        work(WorkloadStep.TRAIN, attempt=1),
        work(WorkloadStep.TRAIN, attempt=2),
        work(WorkloadStep.TRAIN, "k2"),
    ]
    shown = [line for line in lines(now, model, workloads=attempts) if line.startswith("feed-")]
    assert shown == ["feed-k3-train-2 is running for 58s"]


@pytest.mark.parametrize(
    ("at", "attempts", "under"),
    [
        (Step.INDEXING_EVALUATION, {"encode-k3": 1}, "Evaluation index"),
        (Step.INDEXING_SERVING, {"encode-k3": 1}, "Index"),
        (Step.EVALUATING, {"encode-k3": 1, "idxeval-k3": 1}, "Evaluation index"),
        (Step.DEPLOYING, {"encode-k3": 1, "index-k3": 1}, "Index"),
    ],
)
def test_an_encoding_is_shown_under_the_index_it_is_for(
    busy: RetrievalModel, now: int, at: Step, attempts: dict[str, int], under: str
) -> None:
    model = candidate(busy, step=at, attempts=attempts, gates=[])
    shown = lines(now, model, workloads=[work(WorkloadStep.ENCODE)])
    before = shown[shown.index("feed-k3-encode-1 is running for 59s") - 1]
    assert before.split("  ")[1].strip() == under


def test_what_is_wrong_around_it_comes_first(busy: RetrievalModel, now: int) -> None:
    model = changed(
        busy,
        conditions=[
            condition(ConditionType.READY, "False", Reason.CHAMPION_NOT_READY, "stack s-0002 does not run"),
            condition(ConditionType.DEPENDENCIES_READY, "False", Reason.DEPENDENCY_MISSING, "storage: no claim"),
        ],
    )
    shown = lines(now, model, attention="not shown: list pods: forbidden")
    assert shown[1:3] == ["not shown: list pods: forbidden", "Missing  storage: no claim"]
    assert "False Ready: stack s-0002 does not run" in shown


def test_the_champion_s_index_says_its_size_and_age(busy: RetrievalModel, now: int) -> None:
    assert busy.status.champion is not None
    champion = busy.status.champion.model_copy(update={"items": 1200, "as_of": now, "baking_until": now + 60})
    shown = lines(now, changed(busy, champion=champion))
    assert "index g-0000000000000002 of 1200 items as of 2023-11-14 22:13:20Z, from /data/feed-2" in shown
    assert "rollback window until 2023-11-14 22:14:20Z" in shown


def test_former_stacks_say_what_a_rollback_to_them_costs(busy: RetrievalModel, now: int) -> None:
    shown = lines(now, busy, former="s-0001", stacks={"s-0002": stack(busy)})
    assert "s-0001  was live, does not run; a rollback starts it again" in shown


def test_a_rollback_stays_to_be_seen_until_something_new_begins(busy: RetrievalModel, now: int) -> None:
    entry = HistoryEntry(
        id="r3",
        kind="Revision",  # type: ignore[arg-type]
        revision="r3",
        outcome="RolledBack",
        reason=Reason.ROLLED_BACK,
        message="traffic went back from stack s-0003 to s-0002",
        at=now - 300,
        step=Step.BAKING,
    )
    back = changed(busy, candidate=None, history=[entry, *busy.status.history])
    shown = lines(now, back)
    assert "Ended revision r3  RolledBack 5m ago" in shown
    assert "RolledBack: traffic went back from stack s-0003 to s-0002" in shown
    assert not any(line.startswith("Ended") for line in lines(now, changed(busy, history=[entry])))

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.cli import views
from retrieval_operator.cli.output import as_text, table
from retrieval_operator.cli.reading import last_failed
from retrieval_operator.cli.words import age, duration
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep

LOG_TAIL = "step 120/600 loss 4.1\nBadInput: items/part-0.parquet: column title is missing"


@pytest.fixture
def description(busy: RetrievalModel, now: int) -> views.Description:
    failed = WorkloadObserved(
        name="feed-r3-eval-1",
        step=WorkloadStep.EVALUATE,
        key="r3",
        attempt=1,
        state="Failed",
        exit_code=65,
        reason="BadInput",
        message="items/part-0.parquet: column title is missing",
        started_at=now - 1200,
        finished_at=now - 1150,
    )
    return views.Description(
        model=busy,
        why="Waits for a person: approve or reject stack s-0003.",
        page="http://127.0.0.1:5000/#/models/default.feed",
        events=[views.EventView(type="Normal", reason="GatesPassed", message="r3 passed.", count=1, last_at=now - 420)],
        workloads=[failed],
        log_tails={failed.name: LOG_TAIL},
        logs="retrieval-operator local logs NAME",
    )


def test_describe_reads_well(description: views.Description, now: int, golden) -> None:
    golden("cli/describe.txt", as_text(views.describe(description, now)))


def test_describe_of_a_fresh_object_says_that_nobody_looked_yet(fresh: RetrievalModel, now: int, golden) -> None:
    golden("cli/describe_fresh.txt", as_text(views.describe(views.Description(model=fresh), now)))


def test_get_is_one_line_per_object(busy: RetrievalModel, fresh: RetrievalModel, now: int, golden) -> None:
    golden("cli/get.txt", as_text([table(views.ROW_HEADERS, [views.row(busy, now), views.row(fresh, now)])]))


@pytest.mark.parametrize(("stays", "sentence"), [(True, "MLflow is not reachable"), (False, "it is being deleted")])
def test_the_message_of_a_deleted_object_is_what_keeps_it_and_never_that_it_serves(
    busy: RetrievalModel, now: int, stays: bool, sentence: str
) -> None:
    stalled = Condition(
        type=ConditionType.STALLED,
        status="True",
        reason=Reason.REGISTRY_UNAVAILABLE,
        message="MLflow is not reachable",
        observed_generation=3,
        last_transition_time=now,
    )
    said = [*busy.status.conditions, *([stalled] if stays else [])]
    status = busy.status.model_copy(update={"phase": "Deleting", "candidate": None, "conditions": said})
    metadata = busy.metadata.model_copy(update={"deletion_timestamp": now})
    assert views.message(busy.model_copy(update={"metadata": metadata, "status": status})) == sentence


def test_what_get_prints_as_yaml_can_be_applied_again(busy: RetrievalModel, golden) -> None:
    text = yaml.safe_dump(views.document(busy), sort_keys=False)
    golden("cli/get.yaml", text)
    again = parse_manifest(yaml.safe_load(text), "get")
    assert again.spec == busy.spec
    assert again.spec.explicit() == busy.spec.explicit(), "defaults must not become explicit on the way"


def test_nothing_is_cut_or_wrapped_in_a_pipe() -> None:
    long = "word " * 400
    (header, line) = as_text([table(["NAME", "MESSAGE"], [["a", long]])]).splitlines()
    assert (header, line) == ("NAME  MESSAGE", f"a     {long.strip()}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (2 * 86_400, "2d")],
)
def test_ages_are_short(seconds: int, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86_400)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@given(st.text(max_size=8).filter(lambda text: not text.strip()[:1].isdigit()))
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 90s"):
        duration(text)


def test_values_of_variables_that_stacks_were_started_with_are_not_shown(busy: RetrievalModel) -> None:
    """The status keeps them for rollbacks; what people paste into an issue must not."""
    env = [{"name": "TOKEN", "value": "hunter2"}, {"name": "OTHER", "secret": {"name": "s", "key": "k"}}]
    serving = {"image": "server:1", "pod": {"env": env}}
    assert busy.status.champion is not None
    status = busy.status.model_copy(
        update={
            "champion": busy.status.champion.model_copy(update={"serving": serving}),
            "history": [
                entry.model_copy(update={"record": entry.record.model_copy(update={"serving": serving})})
                for entry in busy.status.history
                if entry.record is not None
            ],
        }
    )
    assert status.history, "else this looked at less than it says"
    shown = views.document(busy.model_copy(update={"status": status}))
    assert "hunter2" not in str(shown)
    assert shown["status"]["champion"]["serving"] == {
        "image": "server:1",
        "pod": {"env": [{"name": "TOKEN"}, env[1]]},
    }


def attempt(step: WorkloadStep, state: str, started_at: int) -> WorkloadObserved:
    return WorkloadObserved(
        name=f"feed-r3-{step}-1", step=step, key="r3", attempt=1, state=state, started_at=started_at
    )


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (None, "feed-r3-train-1"),
        (attempt(WorkloadStep.COLLECT, "Running", 20), "feed-r3-train-1"),
        (attempt(WorkloadStep.COLLECT, "Failed", 20), "feed-r3-collect-1"),
        (attempt(WorkloadStep.TRAIN, "Running", 20), None),
    ],
    ids=[
        "the newest attempt",
        "a removal beside it hides nothing",
        "unless it failed, too",
        "a new attempt is under way",
    ],
)
def test_the_failure_that_people_are_shown(later: WorkloadObserved | None, expected: str | None) -> None:
    attempts = [attempt(WorkloadStep.TRAIN, "Failed", 10), *([later] if later else [])]
    found = last_failed(attempts)
    assert (found.name if found else None) == expected

"""Which requests the Registry makes for runs, and what it does about twins, stale views and MLflow's limits."""

from __future__ import annotations

import pytest
from mlflow_answers import EXPERIMENT, failed

from retrieval_operator.adapters.mlflow.runs import quoted
from retrieval_operator.domain.plan import EnsureRun
from retrieval_operator.ports import Rejected, Stale

TRAIN = EnsureRun(step="train", key="k", name="feed train k")


class TestEnsureRun:
    async def test_finds_by_tags_before_it_creates(self, scripted, model, run_entry):
        registry, script = scripted([EXPERIMENT, ("POST runs/search", {"runs": [run_entry("r")]})])
        await registry.ensure_run(model, TRAIN)
        assert script.body(1)["filter"] == (
            "tags.`owner` = 'local/default/feed' and tags.`retrieval.step` = 'train' and tags.`retrieval.key` = 'k'"
        )

    async def test_creates_with_identity_name_and_parent(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {}),
                ("POST runs/search", {"runs": [run_entry("parent")]}),
                ("POST runs/create", {"run": run_entry("r")}),
                ("POST runs/search", {"runs": [run_entry("r")]}),
            ]
        )
        wanted = EnsureRun(step="eval", key="e", name="feed eval", parent_key="k", tags={"owner": "x", "more": "y"})
        await registry.ensure_run(model, wanted)
        created = script.body(3)
        tags = {tag["key"]: tag["value"] for tag in created["tags"]}
        assert (created["run_name"], created["start_time"]) == ("feed eval", 1_000_000)
        assert tags["owner"] == "local/default/feed", "an extra tag never changes the identity"
        assert (tags["retrieval.step"], tags["retrieval.key"], tags["more"]) == ("eval", "e", "y")
        assert tags["mlflow.parentRunId"] == "parent"

    async def test_a_parent_that_was_deleted_leaves_the_run_without_one(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {}),
                ("POST runs/search", {}),
                ("POST runs/create", {}),
                ("POST runs/search", {"runs": [run_entry("r")]}),
            ]
        )
        await registry.ensure_run(model, EnsureRun(step="eval", key="e", name="n", parent_key="k"))
        assert "mlflow.parentRunId" not in {tag["key"] for tag in script.body(3)["tags"]}

    async def test_of_twins_the_oldest_is_kept(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {}),
                ("POST runs/create", {"run": run_entry("mine", 7)}),
                ("POST runs/search", {"runs": [run_entry("mine", 7), run_entry("theirs", 6)]}),
                ("POST runs/delete", {}),
            ]
        )
        await registry.ensure_run(model, TRAIN)
        assert script.body(4) == {"run_id": "mine"}

    async def test_twins_left_by_a_crash_are_settled_at_the_next_call(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": [run_entry("a", 2), run_entry("b", 1)]}),
                ("POST runs/delete", {}),
            ]
        )
        await registry.ensure_run(model, TRAIN)
        assert script.body(2) == {"run_id": "a"}

    async def test_an_experiment_created_by_somebody_else_in_the_meantime_is_used(
        self, scripted, model, missing, run_entry
    ):
        registry, _ = scripted(
            [
                ("GET experiments/get-by-name", missing),
                ("POST experiments/create", failed("RESOURCE_ALREADY_EXISTS")),
                EXPERIMENT,
                ("POST runs/search", {"runs": [run_entry("r")]}),
            ]
        )
        await registry.ensure_run(model, TRAIN)

    async def test_a_deleted_experiment_needs_a_person(self, scripted, model):
        deleted = {"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}
        registry, _ = scripted([("GET experiments/get-by-name", deleted)])
        with pytest.raises(Rejected, match=r"'retrieval/default/feed' was deleted; restore it .*--experiment-id 7"):
            await registry.ensure_run(model, TRAIN)


class TestSetRunStatus:
    @pytest.mark.parametrize(
        ("before", "status", "written"),
        [
            ("RUNNING", "Failed", {"status": "FAILED", "end_time": 1_000_000}),
            ("RUNNING", "Killed", {"status": "KILLED", "end_time": 1_000_000}),
            ("KILLED", "Running", {"status": "RUNNING", "end_time": 0}),
            ("FAILED", "Failed", None),
        ],
    )
    async def test_is_written_once_with_the_time(self, scripted, model, run_entry, before, status, written):
        update = [("POST runs/update", {})] if written else []
        registry, script = scripted([("GET runs/get", {"run": run_entry("r", status=before)}), *update])
        await registry.set_run_status(model, "r", status)
        bodies = [script.body(1)] if written else []
        assert bodies == ([{"run_id": "r"} | written] if written else [])

    async def test_of_a_deleted_run_is_stale(self, scripted, model, missing):
        registry, _ = scripted([("GET runs/get", missing)])
        with pytest.raises(Stale):
            await registry.set_run_status(model, "r", "Failed")

    @pytest.mark.parametrize(
        ("stored", "seen"),
        [("RUNNING", "Running"), ("SCHEDULED", "Running"), ("FAILED", "Failed"), ("KILLED", "Killed")],
    )
    async def test_is_observed(self, scripted, model, missing, run_entry, stored, seen):
        registry, _ = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": [run_entry("r", status=stored)]}),
                ("GET registered-models/get", missing),
            ]
        )
        assert (await registry.observe(model)).runs["train:k"].status == seen


class TestTagRun:
    async def test_writes_what_differs_in_batches_of_mlflows_limit(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                ("GET runs/get", {"run": run_entry("r", same="1")}),
                ("POST runs/log-batch", {}),
                ("POST runs/log-batch", {}),
            ]
        )
        await registry.tag_run(model, "r", {"same": "1", **{f"t{n}": "v" for n in range(101)}})
        assert [len(script.body(n)["tags"]) for n in (1, 2)] == [100, 1]

    async def test_writes_nothing_when_nothing_differs(self, scripted, model, run_entry):
        registry, _ = scripted([("GET runs/get", {"run": run_entry("r", same="1")})])
        await registry.tag_run(model, "r", {"same": "1"})

    async def test_a_run_that_is_gone_or_deleted_means_observe_again(self, scripted, model, missing, run_entry):
        deleted = run_entry("r")
        deleted["info"]["lifecycle_stage"] = "deleted"
        registry, _ = scripted([("GET runs/get", missing), ("GET runs/get", {"run": deleted})])
        for _ in range(2):
            with pytest.raises(Stale, match="was deleted"):
                await registry.tag_run(model, "r", {"a": "b"})


def test_a_name_is_quoted_with_the_mark_it_does_not_hold():
    assert quoted("o'brien") == '"o\'brien"'
    assert quoted("plain") == "'plain'"
    with pytest.raises(Rejected, match="both kinds of quotes"):
        quoted("""a'b"c""")

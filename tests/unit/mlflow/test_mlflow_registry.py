"""Which requests the Registry makes, and what it does about twins, stale views, foreign owners and MLflow's limits."""

from __future__ import annotations

import hashlib
import json

import pytest

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.adapters.mlflow.limits import (
    DESCRIPTION_MAX_CHARS,
    TAG_VALUE_MAX_CHARS,
    cut_description,
    cut_tag,
)
from retrieval_operator.adapters.mlflow.runs import quoted
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected, Retryable, Stale

EXPERIMENT = ("GET experiments/get-by-name", {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}})
OWNED = {"name": "default.feed", "tags": [{"key": "owner", "value": "local/default/feed"}]}
TRAIN = EnsureRun(step="train", key="k", name="feed train k")
VERSION = RegisterVersion(bundle_id="b-1", run_id="r", tags={"revision": "rev"}, description="# card")


MAINTENANCE = {"status": "maintenance"}  # a gateway in front of MLflow


def version_entry(number: str, bundle_id: str = "b-1", **tags: str) -> dict:
    named = {"owner": "local/default/feed", "bundle_id": bundle_id} | tags
    return {"version": number, "tags": [{"key": key, "value": value} for key, value in named.items()]}


def failed(code: str, status: int = 400) -> tuple[int, dict[str, str]]:
    return status, {"error_code": code, "message": "no"}


class TestObserve:
    async def test_nothing_yet_is_an_empty_registry_with_mlflows_own_page(self, scripted, model, missing):
        registry, _ = scripted(
            [
                ("GET experiments/get-by-name", missing),
                ("GET registered-models/get", missing),
            ]
        )
        observed = await registry.observe(model)
        assert (observed.runs, observed.versions, observed.aliases) == ({}, {}, {})
        assert observed.page == "http://mlflow.test/#/"

    async def test_a_settled_object_costs_three_reads_and_no_write(self, scripted, model, run_entry):
        report = b'{"formatVersion": 1}'
        done = run_entry("r", **{"retrieval.report": hashlib.sha256(report).hexdigest()})
        settled = [
            ("POST runs/search", {"runs": [done]}),
            ("GET registered-models/get", {"registered_model": OWNED | {"aliases": [{"alias": "a", "version": "1"}]}}),
            ("GET model-versions/search", {"model_versions": [version_entry("1")]}),
        ]
        first = [EXPERIMENT, settled[0], ("GET /get-artifact", report), *settled[1:]]
        registry, _ = scripted([*first, *settled])
        assert await registry.observe(model) == (observed := await registry.observe(model))
        assert observed.report("train", "k") == {"formatVersion": 1}
        assert observed.aliases == {"a": "1"}
        assert observed.versions["b-1"].number == "1"
        assert observed.page == "http://mlflow.test/#/experiments/1"

    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param([("GET experiments/get-by-name", MAINTENANCE)], id="at first"),
            pytest.param([EXPERIMENT, ("POST runs/search", MAINTENANCE)], id="not as an empty page"),
            pytest.param([EXPERIMENT, ("POST runs/search", {"runs": [{"info": {}}]})], id="an unknown run"),
            pytest.param([EXPERIMENT, ("POST runs/search", {"runs": ["r"]})], id="a list of something else"),
            pytest.param([EXPERIMENT, ("POST runs/search", {}), ("GET registered-models/get", MAINTENANCE)], id="late"),
        ],
    )
    async def test_json_of_somebody_else_is_refused_with_what_to_check(self, scripted, model, steps):
        registry, _ = scripted(steps)
        with pytest.raises(
            Rejected, match=r"http://mlflow\.test answered with JSON .*; check that this is the address"
        ):
            await registry.observe(model)

    @pytest.mark.parametrize("content", [b"[]", b"{}", b'"x"', b'{"a": NaN}', b"\xff", b""], ids=repr)
    async def test_a_report_that_is_no_document_is_none_and_its_tag_is_removed(
        self, scripted, model, missing, run_entry, content
    ):
        run = run_entry("r", status="RUNNING", **{"retrieval.report": hashlib.sha256(content).hexdigest()})
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": [run]}),
                ("GET /get-artifact", content),
                ("POST runs/delete-tag", {}),
                ("GET registered-models/get", missing),
            ]
        )
        assert (await registry.observe(model)).report("train", "k") is None
        assert script.body(3) == {"run_id": "r", "key": "retrieval.report"}

    @pytest.mark.parametrize("before", ["RUNNING", "FAILED", "KILLED"])
    async def test_a_new_report_ends_the_run_and_a_refused_end_is_left_to_the_next_pass(
        self, scripted, model, missing, run_entry, before
    ):
        content = json.dumps({"id": "b-1"}).encode()
        run = run_entry("r", status=before, **{"retrieval.report": hashlib.sha256(content).hexdigest()})
        registry, script = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": [run]}),
                ("GET /get-artifact", content),
                ("POST runs/update", (503, "busy")),
                ("GET registered-models/get", missing),
                ("POST runs/search", {"runs": [run]}),
                ("POST runs/update", {}),
                ("GET registered-models/get", missing),
            ]
        )
        for _ in range(2):
            assert (await registry.observe(model)).report("train", "k") == {"id": "b-1"}
        assert script.body(6) == {"run_id": "r", "status": "FINISHED", "end_time": 1_000_000}

    async def test_of_twins_the_one_with_a_report_counts_then_the_oldest(self, scripted, model, missing, run_entry):
        twins = [run_entry("b", 5), run_entry("a", 5), run_entry("c", 1)]
        reported = run_entry("z", 9, **{"retrieval.report": "0" * 64})
        registry, _ = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": twins}),
                ("GET registered-models/get", missing),
                ("POST runs/search", {"runs": [*twins, reported]}),
                ("GET /get-artifact", missing),
                ("POST runs/delete-tag", (503, "busy")),
                ("GET registered-models/get", missing),
            ]
        )
        assert (await registry.observe(model)).runs["train:k"].run_id == "c"
        assert (await registry.observe(model)).runs["train:k"].run_id == "z"

    async def test_versions_and_aliases_of_anothers_model_are_not_ours(self, scripted, model):
        foreign = OWNED | {
            "tags": [{"key": "owner", "value": "other/default/feed"}],
            "aliases": [{"alias": "champion"}],
        }
        registry, _ = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {}),
                ("GET registered-models/get", {"registered_model": foreign}),
            ]
        )
        observed = await registry.observe(model)
        assert (observed.versions, observed.aliases) == ({}, {})
        assert observed.page == "http://mlflow.test/#/experiments/1"

    async def test_an_unreachable_mlflow_raises_retryable(self, scripted, model):
        registry, _ = scripted([("GET experiments/get-by-name", (502, "bad gateway"))])
        with pytest.raises(Retryable):
            await registry.observe(model)

    async def test_an_unknown_connection_is_told_by_its_field(self, model):
        registry = MlflowRegistry({"production": Connection(uri="http://m")})
        with pytest.raises(Rejected, match=r"spec\.registry\.connection: found 'default'.*production"):
            await registry.observe(model)


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


class TestRegisterVersion:
    async def test_creates_model_and_version_from_the_runs_own_artifacts(self, scripted, model, missing, run_entry):
        registry, script = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", missing),
                ("POST registered-models/create", {}),
                ("GET registered-models/get", {"registered_model": OWNED}),
                ("GET model-versions/search", {}),
                ("POST model-versions/create", {}),
                ("GET model-versions/search", {"model_versions": [version_entry("1")]}),
            ]
        )
        await registry.register_version(model, VERSION)
        created = script.body(5)
        assert created["source"] == "mlflow-artifacts:/1/r/artifacts/bundle"
        assert created["run_id"] == "r"
        assert {tag["key"]: tag["value"] for tag in created["tags"]} == {
            "owner": "local/default/feed",
            "bundle_id": "b-1",
            "revision": "rev",
        }

    async def test_finds_the_bundles_version_by_its_tag(self, scripted, model, run_entry):
        registry, _ = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", {"registered_model": OWNED}),
                ("GET model-versions/search", {"model_versions": [version_entry("2", "b-0"), version_entry("3")]}),
            ]
        )
        await registry.register_version(model, VERSION)

    async def test_of_twins_the_lowest_number_is_kept_also_when_the_other_writer_deletes_first(
        self, scripted, model, missing, run_entry
    ):
        registry, script = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", {"registered_model": OWNED}),
                ("GET model-versions/search", {}),
                ("POST model-versions/create", {}),
                ("GET model-versions/search", {"model_versions": [version_entry("10"), version_entry("9")]}),
                ("DELETE model-versions/delete", missing),
            ]
        )
        await registry.register_version(model, VERSION)
        assert script.body(5) == {"name": "default.feed", "version": "10"}

    async def test_anothers_registered_model_is_refused_with_both_names(self, scripted, model, run_entry):
        theirs = OWNED | {"tags": [{"key": "owner", "value": "prod/default/feed"}]}
        registry, _ = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", {"registered_model": theirs}),
            ]
        )
        with pytest.raises(Rejected, match=r"belongs to prod/default/feed .* this object is local/default/feed"):
            await registry.register_version(model, VERSION)

    async def test_a_race_for_the_models_name_is_lost_with_the_same_sentence(self, scripted, model, missing, run_entry):
        theirs = OWNED | {"tags": [{"key": "owner", "value": "prod/default/feed"}]}
        registry, _ = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", missing),
                ("POST registered-models/create", failed("RESOURCE_ALREADY_EXISTS")),
                ("GET registered-models/get", {"registered_model": theirs}),
            ]
        )
        with pytest.raises(Rejected, match="belongs to prod/default/feed"):
            await registry.register_version(model, VERSION)

    async def test_a_persons_model_with_versions_is_not_taken_over(self, scripted, model, run_entry):
        registry, _ = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", {"registered_model": {"name": "default.feed"}}),
                ("GET model-versions/search", {"model_versions": [{"version": "1"}]}),
            ]
        )
        with pytest.raises(Rejected, match="hand it over by setting its tag 'owner' to 'local/default/feed'"):
            await registry.register_version(model, VERSION)

    async def test_an_empty_model_prepared_by_a_person_is_adopted(self, scripted, model, run_entry):
        registry, script = scripted(
            [
                ("GET runs/get", {"run": run_entry("r")}),
                ("GET registered-models/get", {"registered_model": {"name": "default.feed"}}),
                ("GET model-versions/search", {}),
                ("POST registered-models/set-tag", {}),
                ("GET model-versions/search", {"model_versions": [version_entry("1")]}),
            ]
        )
        await registry.register_version(model, VERSION)
        assert script.body(3) == {"name": "default.feed", "key": "owner", "value": "local/default/feed"}


class TestDescribeVersion:
    async def test_sets_changes_removes_and_leaves_alone(self, scripted, model):
        entry = version_entry("4", same="1", old="x", wrong="y") | {"description": "before"}
        registry, script = scripted(
            [
                ("GET model-versions/get", {"model_version": entry}),
                ("POST model-versions/set-tag", {}),
                ("DELETE model-versions/delete-tag", {}),
                ("PATCH model-versions/update", {}),
            ]
        )
        tags = {"same": "1", "wrong": "z", "old": "", "never": ""}
        await registry.describe_version(model, "4", tags, "after")
        key = {"name": "default.feed", "version": "4"}
        assert script.body(1) == {**key, "key": "wrong", "value": "z"}
        assert script.body(2) == {**key, "key": "old"}
        assert script.body(3) == {**key, "description": "after"}

    @pytest.mark.parametrize("description", [None, "before", "before" + "\n" * 6000])
    async def test_writes_nothing_when_nothing_differs_after_cutting(self, scripted, model, description):
        shown = cut_description(description or "before")
        registry, _ = scripted(
            [("GET model-versions/get", {"model_version": version_entry("4", same="1") | {"description": shown}})]
        )
        await registry.describe_version(model, "4", {"same": "1", "none": ""}, description)

    async def test_a_version_that_is_gone_means_observe_again(self, scripted, model, missing):
        registry, _ = scripted([("GET model-versions/get", missing)])
        with pytest.raises(Stale, match="version 4"):
            await registry.describe_version(model, "4", {}, None)


class TestSetAlias:
    MODEL = OWNED | {"aliases": [{"alias": "champion", "version": "3"}]}

    @pytest.mark.parametrize(("alias", "version"), [("champion", "3"), ("candidate", "")])
    async def test_does_nothing_when_it_is_so(self, scripted, model, alias, version):
        registry, _ = scripted([("GET registered-models/get", {"registered_model": self.MODEL})])
        await registry.set_alias(model, alias, version)

    async def test_moves_and_removes(self, scripted, model):
        read = ("GET registered-models/get", {"registered_model": self.MODEL})
        registry, script = scripted(
            [read, ("POST registered-models/alias", {}), read, ("DELETE registered-models/alias", {})]
        )
        await registry.set_alias(model, "champion", "4")
        await registry.set_alias(model, "champion", "")
        assert script.body(1) == {"name": "default.feed", "alias": "champion", "version": "4"}
        assert script.body(3) == {"name": "default.feed", "alias": "champion"}

    async def test_removing_from_a_model_that_does_not_exist_is_done_already(self, scripted, model, missing):
        registry, _ = scripted([("GET registered-models/get", missing)])
        await registry.set_alias(model, "champion", "")

    async def test_a_version_that_is_gone_means_observe_again(self, scripted, model, missing):
        registry, _ = scripted(
            [("GET registered-models/get", {"registered_model": OWNED}), ("POST registered-models/alias", missing)]
        )
        with pytest.raises(Stale):
            await registry.set_alias(model, "champion", "9")


class TestLimits:
    @pytest.mark.parametrize("length", [0, TAG_VALUE_MAX_CHARS - 1, TAG_VALUE_MAX_CHARS])
    def test_what_fits_stays_as_it_is(self, length):
        assert cut_tag("x" * length) == "x" * length
        assert cut_description("x" * length) == "x" * length

    def test_what_is_longer_is_cut_and_says_so(self):
        for cut in (cut_tag("x" * 9000), cut_description("x" * 9000)):
            assert len(cut) <= min(TAG_VALUE_MAX_CHARS, DESCRIPTION_MAX_CHARS)
            assert cut.endswith("x…")

    def test_a_table_is_cut_between_its_rows(self):
        table = "| gate | value |\n| --- | --- |\n" + "| recall@10 | 0.5 |\n" * 400
        cut = cut_description(table)
        assert len(cut) <= DESCRIPTION_MAX_CHARS
        assert cut.endswith("| recall@10 | 0.5 |\n\n…")

    def test_a_name_is_quoted_with_the_mark_it_does_not_hold(self):
        assert quoted("o'brien") == '"o\'brien"'
        assert quoted("plain") == "'plain'"
        with pytest.raises(Rejected, match="both kinds of quotes"):
            quoted("""a'b"c""")


class TestAnswersOfSomebodyElse:
    @pytest.mark.parametrize(
        ("call", "request_"),
        [
            (lambda registry, model: registry.ensure_run(model, TRAIN), "GET experiments/get-by-name"),
            (lambda registry, model: registry.tag_run(model, "r", {"a": "b"}), "GET runs/get"),
            (lambda registry, model: registry.register_version(model, VERSION), "GET runs/get"),
            (lambda registry, model: registry.describe_version(model, "1", {}, None), "GET model-versions/get"),
            (lambda registry, model: registry.set_alias(model, "champion", "1"), "GET registered-models/get"),
        ],
        ids=["ensure_run", "tag_run", "register_version", "describe_version", "set_alias"],
    )
    async def test_are_refused_by_every_write(self, scripted, model, call, request_):
        registry, _ = scripted([(request_, MAINTENANCE)])
        with pytest.raises(Rejected, match="which is not MLflow's; check"):
            await call(registry, model)

"""Which requests the Registry makes for versions and aliases: twins, stale views, foreign owners, MLflow's limits."""

from __future__ import annotations

import pytest
from mlflow_answers import OWNED, failed, version_entry

from retrieval_operator.adapters.mlflow.limits import (
    DESCRIPTION_MAX_CHARS,
    TAG_VALUE_MAX_CHARS,
    cut_description,
    cut_tag,
)
from retrieval_operator.domain.plan import RegisterVersion
from retrieval_operator.ports import Rejected, Stale

VERSION = RegisterVersion(bundle_id="b-1", run_id="r", tags={"revision": "rev"}, description="# card")


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

"""The Registry adapter against a real MLflow server."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected, Retryable, Stale

pytestmark = pytest.mark.component

TRAIN = EnsureRun(step="train", key="k1", name="feed k1", tags={"revision": "k1"})


async def trained(registry, model, program, key: str = "k1") -> str:
    """A run with a report; its id."""
    await registry.ensure_run(model, EnsureRun(step="train", key=key, name=f"train {key}"))
    run_id = (await registry.observe(model)).runs[f"train:{key}"].run_id
    program.upload(run_id, "bundle/bundle.json", b"{}")
    program.report(run_id, {"id": f"b-{key}"})
    return run_id


async def registered(registry, model, program, key: str = "k1") -> str:
    """A version; its number."""
    run_id = await trained(registry, model, program, key)
    await registry.register_version(model, RegisterVersion(bundle_id=f"b-{key}", run_id=run_id, tags={"revision": key}))
    return (await registry.observe(model)).versions[f"b-{key}"].number


class TestRuns:
    async def test_are_created_once_however_often_they_are_asked_for(self, new_registry, model):
        for _ in range(3):
            await new_registry().ensure_run(model, TRAIN)
        observed = await new_registry().observe(model)
        assert list(observed.runs) == ["train:k1"]
        assert observed.runs["train:k1"].tags["revision"] == "k1"

    async def test_of_one_object_are_not_seen_by_another_nor_by_another_cluster(self, new_registry, model, new_model):
        await new_registry().ensure_run(model, TRAIN)
        assert (await new_registry().observe(new_model())).runs == {}
        assert (await new_registry(cluster="elsewhere").observe(model)).runs == {}

    async def test_of_other_steps_are_nested_under_the_revisions_run(self, registry, model, program):
        await registry.ensure_run(model, TRAIN)
        await registry.ensure_run(model, EnsureRun(step="eval", key="e1", name="evaluation", parent_key="k1"))
        runs = (await registry.observe(model)).runs
        child = program.run(runs["eval:e1"].run_id)
        assert child["info"]["run_name"] == "evaluation"
        assert {"key": "mlflow.parentRunId", "value": runs["train:k1"].run_id} in child["data"]["tags"]

    @pytest.mark.parametrize("path", ["runs/search", "runs/create"])
    async def test_created_by_two_control_planes_at_once_become_one(
        self, new_registry, model, program, meanwhile, path
    ):
        other = new_registry(now=lambda: 1000.0)
        transport = meanwhile(path, lambda: other.ensure_run(model, TRAIN))
        await new_registry(transport=transport, now=lambda: 2000.0).ensure_run(model, TRAIN)
        observed = (await new_registry().observe(model)).runs["train:k1"]
        assert program.run(observed.run_id)["info"]["start_time"] == 1_000_000
        experiment = program.run(observed.run_id)["info"]["experiment_id"]
        active = program.post("runs/search", experiment_ids=[experiment])["runs"]
        assert [run["info"]["run_id"] for run in active] == [observed.run_id]

    async def test_created_by_eight_at_once_become_one(self, new_registry, model, program):
        await asyncio.gather(*(new_registry().ensure_run(model, TRAIN) for _ in range(8)))
        run_id = (await new_registry().observe(model)).runs["train:k1"].run_id
        experiment = program.run(run_id)["info"]["experiment_id"]
        assert len(program.post("runs/search", experiment_ids=[experiment])["runs"]) == 1

    async def test_get_tags_and_a_deleted_run_means_observe_again(self, registry, model, program):
        await registry.ensure_run(model, TRAIN)
        run_id = (await registry.observe(model)).runs["train:k1"].run_id
        await registry.tag_run(model, run_id, {"retrieval.verdict": "Rejected", "long": "x" * 20_000})
        tags = (await registry.observe(model)).runs["train:k1"].tags
        assert tags["retrieval.verdict"] == "Rejected"
        assert tags["long"].endswith("x…")
        program.post("runs/delete", run_id=run_id)
        assert (await registry.observe(model)).runs == {}
        with pytest.raises(Stale):
            await registry.tag_run(model, run_id, {"a": "b"})


class TestReports:
    async def test_are_none_until_the_tag_proves_them_and_end_the_run(self, registry, model, program):
        await registry.ensure_run(model, TRAIN)
        run_id = (await registry.observe(model)).runs["train:k1"].run_id
        program.upload(run_id, "report.json", b'{"id": "b-1"}')
        assert (await registry.observe(model)).report("train", "k1") is None
        assert program.run(run_id)["info"]["status"] == "RUNNING"
        program.report(run_id, {"id": "b-1"})
        assert (await registry.observe(model)).report("train", "k1") == {"id": "b-1"}
        assert program.run(run_id)["info"]["status"] == "FINISHED"

    async def test_that_were_changed_afterwards_are_refused_until_reported_anew(self, new_registry, model, program):
        run_id = await trained(new_registry(), model, program)
        program.upload(run_id, "report.json", b'{"id": "b-other"}')
        registry = new_registry()
        observed = (await registry.observe(model)).runs["train:k1"]
        assert observed.report is None
        assert "retrieval.report" not in (await registry.observe(model)).runs["train:k1"].tags
        program.report(run_id, {"id": "b-k1"})
        assert (await registry.observe(model)).report("train", "k1") == {"id": "b-k1"}

    async def test_whose_artifact_is_missing_are_none(self, registry, model, program):
        await registry.ensure_run(model, TRAIN)
        run_id = (await registry.observe(model)).runs["train:k1"].run_id
        program.post("runs/set-tag", run_id=run_id, key="retrieval.report", value="0" * 64)
        assert (await registry.observe(model)).report("train", "k1") is None

    async def test_are_downloaded_once(self, new_registry, model, program, meanwhile):
        await registered(new_registry(), model, program)
        transport = meanwhile()
        registry = new_registry(transport=transport)
        first = await registry.observe(model)
        assert transport.calls.count("/get-artifact") == 1
        transport.calls.clear()
        assert await registry.observe(model) == first
        assert transport.calls == ["runs/search", "registered-models/get", "model-versions/search"]


class TestVersions:
    async def test_are_one_per_bundle_with_tags_source_and_page(self, registry, model, program, mlflow_uri):
        run_id = await trained(registry, model, program)
        wanted = RegisterVersion(
            bundle_id="b-k1", run_id=run_id, tags={"bundle_uri": "file:///b"}, description="# Card"
        )
        for _ in range(2):
            await registry.register_version(model, wanted)
        observed = await registry.observe(model)
        version = observed.versions["b-k1"]
        assert (version.number, version.description, version.tags["bundle_uri"]) == ("1", "# Card", "file:///b")
        assert version.tags["owner"] == f"local/{model.key}"
        stored = program.get("model-versions/get", name=model.registered_model_name, version="1")["model_version"]
        assert stored["source"] == f"{program.run(run_id)['info']['artifact_uri']}/bundle"
        assert stored["run_id"] == run_id
        experiment = program.run(run_id)["info"]["experiment_id"]
        assert observed.page == f"{mlflow_uri}/#/experiments/{experiment}"

    @pytest.mark.parametrize("path", ["registered-models/create", "model-versions/create"])
    async def test_created_by_two_control_planes_at_once_become_one(
        self, new_registry, model, program, meanwhile, path
    ):
        run_id = await trained(new_registry(), model, program)
        wanted = RegisterVersion(bundle_id="b-k1", run_id=run_id, tags={})
        other = new_registry()
        transport = meanwhile(path, lambda: other.register_version(model, wanted))
        await new_registry(transport=transport).register_version(model, wanted)
        found = program.get("model-versions/search", filter=f"name = '{model.registered_model_name}'")["model_versions"]
        assert [version["version"] for version in found] == ["1"]

    async def test_of_anothers_model_are_neither_touched_nor_seen(self, new_registry, model, program):
        await registered(new_registry(), model, program)
        elsewhere = new_registry(cluster="elsewhere")
        run_id = await trained(elsewhere, model, program)
        with pytest.raises(Rejected, match=f"belongs to local/{model.key}"):
            await elsewhere.register_version(model, RegisterVersion(bundle_id="b-x", run_id=run_id, tags={}))
        assert (await elsewhere.observe(model)).versions == {}

    async def test_tags_and_description_change_as_told_and_a_persons_tag_is_seen(self, registry, model, program):
        number = await registered(registry, model, program)
        name = model.registered_model_name
        program.post("model-versions/set-tag", name=name, version=number, key="approved_by", value="ann")
        await registry.describe_version(model, number, {"retrieval.verdict": "Passed", "gone": ""}, "| a |\n| --- |")
        version = (await registry.observe(model)).versions["b-k1"]
        assert version.tags["approved_by"] == "ann"
        assert version.tags["retrieval.verdict"] == "Passed"
        assert version.description == "| a |\n| --- |"
        await registry.describe_version(model, number, {"retrieval.verdict": ""}, None)
        version = (await registry.observe(model)).versions["b-k1"]
        assert "retrieval.verdict" not in version.tags
        assert version.description == "| a |\n| --- |"

    async def test_an_equal_description_and_equal_tags_are_not_written(self, new_registry, model, program, meanwhile):
        number = await registered(new_registry(), model, program)
        transport = meanwhile()
        await new_registry(transport=transport).describe_version(model, number, {"revision": "k1", "none": ""}, "")
        assert transport.calls == ["model-versions/get"]

    async def test_what_exceeds_mlflows_limits_is_cut(self, registry, model, program):
        number = await registered(registry, model, program)
        await registry.describe_version(model, number, {"long": "x" * 200_000}, "line\n" * 100_000)
        version = (await registry.observe(model)).versions["b-k1"]
        assert version.tags["long"].endswith("x…")
        assert version.description.endswith("line\n\n…")

    async def test_of_a_name_with_a_quote_are_found(self, registry, new_model, program):
        model = new_model()
        spec = model.spec.model_copy(
            update={"registry": model.spec.registry.model_copy(update={"name": f"o'brien {model.metadata.name}"})}
        )
        assert await registered(registry, model.model_copy(update={"spec": spec}), program) == "1"


class TestAliases:
    async def test_move_and_go(self, registry, model, program):
        first = await registered(registry, model, program, "k1")
        second = await registered(registry, model, program, "k2")
        for version in (first, first, second):
            await registry.set_alias(model, "champion", version)
        await registry.set_alias(model, "candidate", first)
        assert (await registry.observe(model)).aliases == {"champion": second, "candidate": first}
        for _ in range(2):
            await registry.set_alias(model, "candidate", "")
        assert (await registry.observe(model)).aliases == {"champion": second}

    async def test_of_a_version_that_does_not_exist_means_observe_again(self, registry, model, program):
        await registered(registry, model, program)
        with pytest.raises(Stale):
            await registry.set_alias(model, "champion", "99")


class TestRefusals:
    async def test_a_deleted_experiment_is_named_with_its_remedy(self, registry, model, program):
        await registry.ensure_run(model, TRAIN)
        name = f"retrieval/{model.key}"
        experiment = program.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"]
        program.post("experiments/delete", experiment_id=experiment)
        assert (await registry.observe(model)).runs == {}
        with pytest.raises(Rejected, match=f"experiments restore --experiment-id {experiment}"):
            await registry.ensure_run(model, TRAIN)

    async def test_a_host_that_mlflow_was_not_told_of_is_named_with_its_option(self, mlflow_uri, model):
        class ByAnotherName(httpx.AsyncHTTPTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                request.headers["Host"] = "mlflow.svc"
                return await super().handle_async_request(request)

        registry = MlflowRegistry({"default": Connection(uri=mlflow_uri)}, transport=ByAnotherName())
        with pytest.raises(Rejected, match="--allowed-hosts"):
            await registry.observe(model)
        await registry.close()

    async def test_no_server_at_all_is_retryable(self, model, unused_tcp_port):
        registry = MlflowRegistry({"default": Connection(uri=f"http://127.0.0.1:{unused_tcp_port}")})
        with pytest.raises(Retryable, match="not reachable"):
            await registry.observe(model)
        await registry.close()

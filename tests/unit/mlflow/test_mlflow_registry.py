"""What the Registry sees in MLflow, with how many requests, and what it does when somebody else answers."""

from __future__ import annotations

import hashlib
import json

import pytest
from mlflow_answers import EXPERIMENT, MAINTENANCE, OWNED, version_entry

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected, Retryable

TRAIN = EnsureRun(step="train", key="k", name="feed train k")
VERSION = RegisterVersion(bundle_id="b-1", run_id="r", tags={}, description="")


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

"""What the Registry sees in MLflow, with how many requests, and what it does when somebody else answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
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

    async def test_of_a_report_only_what_decides_is_kept_in_memory(self, scripted, model, missing, run_entry):
        rows = [{"baseline": baseline, "delta": 0.1} for baseline in ("random", "notPersonal")]
        report = {"formatVersion": 1, "kind": "evaluation", "collapsed": False, "gates": [{"n": 1}]}
        content = json.dumps(report | {"comparisons": rows, "metrics": [{"value": 0.5}], "plot": "x.png"}).encode()
        run = run_entry("r", **{"retrieval.report": hashlib.sha256(content).hexdigest()})
        registry, _ = scripted(
            [
                EXPERIMENT,
                ("POST runs/search", {"runs": [run]}),
                ("GET /get-artifact", content),
                ("GET registered-models/get", missing),
            ]
        )
        assert (await registry.observe(model)).report("train", "k") == report | {"comparisons": rows[1:]}

    @pytest.mark.parametrize(
        "content",
        [b"[]", b"{}", b'"x"', b'{"a": NaN}', b"\xff", b"", b"[" * 100_000, b" " * (2**21 + 1)],
        ids=lambda c: repr(c)[:12],
    )
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


class ManyReports:
    """An MLflow with so many finished runs. Reports take no time but wait while `is_open` is not set."""

    def __init__(self, count: int) -> None:
        self.reports = {f"r{n}": json.dumps({"id": f"b-{n}"}).encode() for n in range(count)}
        self.failing = ""  # the run whose report the store cannot give now
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.read: list[str] = []
        self.waiting = 0
        self.most_waiting = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.url.path.removeprefix("/api/2.0/mlflow/"):
            case "experiments/get-by-name":
                return httpx.Response(200, json=EXPERIMENT[1])
            case "runs/search":
                return httpx.Response(200, json={"runs": [self._run(name) for name in self.reports]})
            case "/get-artifact":
                return await self._report(request.url.params["run_id"])
            case "artifacts/list":
                return httpx.Response(200, json={"files": [{"path": "report.json"}]})
        return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def _run(self, name: str) -> dict[str, Any]:
        tags = {"retrieval.step": "eval", "retrieval.key": name}
        tags["retrieval.report"] = hashlib.sha256(self.reports[name]).hexdigest()
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        return {"info": {"run_id": name, "status": "FINISHED"}, "data": {"tags": listed}}

    async def _report(self, name: str) -> httpx.Response:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        try:
            await asyncio.sleep(0)
            if len(self.read) >= 5:
                await self.is_open.wait()
        finally:
            self.waiting -= 1
        if name == self.failing:
            return httpx.Response(500, text="the store is busy")
        self.read.append(name)
        return httpx.Response(200, content=self.reports[name])


class TestManyReports:
    @pytest.fixture
    async def mlflow(self):
        return ManyReports(20)

    @pytest.fixture
    async def registry(self, mlflow):
        registry = MlflowRegistry({"default": Connection(uri="http://m")}, transport=httpx.MockTransport(mlflow))
        yield registry
        await registry.close()

    async def test_are_read_a_few_at_a_time_and_once(self, mlflow, registry, model):
        for _ in range(2):
            observed = await registry.observe(model)
            assert {run.report["id"] for run in observed.runs.values()} == {f"b-{n}" for n in range(20)}
        assert sorted(mlflow.read) == sorted(mlflow.reports)
        assert mlflow.most_waiting == 4

    async def test_a_look_that_was_cut_is_gone_on_with(self, mlflow, registry, model):
        mlflow.is_open.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await registry.observe(model)
        mlflow.is_open.set()
        assert len((await registry.observe(model)).runs) == 20
        assert sorted(mlflow.read) == sorted(mlflow.reports), "none was read twice"

    async def test_a_report_that_cannot_be_read_now_costs_no_other_one(self, mlflow, registry, model):
        mlflow.failing = "r12"
        with pytest.raises(Retryable, match="the store is busy"):
            await registry.observe(model)
        assert len(mlflow.read) >= 4, "those asked for before it"
        mlflow.failing = ""
        assert (await registry.observe(model)).report("eval", "r12") == {"id": "b-12"}
        assert sorted(mlflow.read) == sorted(mlflow.reports), "none was read twice"

    async def test_of_runs_that_are_gone_are_forgotten(self, mlflow, registry, model):
        await registry.observe(model)
        gone = mlflow.reports.pop("r3")
        await registry.observe(model)
        mlflow.reports["r3"] = gone
        await registry.observe(model)
        assert mlflow.read.count("r3") == 2
        assert len(mlflow.read) == 21

    async def test_of_an_object_that_is_gone_are_forgotten(self, mlflow, registry, model):
        await registry.observe(model)
        registry.forget("somebody/else")
        await registry.observe(model)
        assert len(mlflow.read) == 20
        registry.forget(model.key)
        await registry.observe(model)
        assert len(mlflow.read) == 40

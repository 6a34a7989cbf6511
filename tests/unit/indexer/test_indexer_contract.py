"""What is written is what docs/contracts.md says, and what the operator reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from retrieval_core.generation import Generation
from retrieval_indexer import cli
from retrieval_indexer.evaluation.gates import parse_gates
from retrieval_indexer.evaluation.run import Evaluation, EvaluationRequest
from retrieval_operator.api.objects import parse_manifest
from retrieval_operator.domain import commands
from retrieval_operator.domain.evidence import EvaluationReport, IndexReport, read
from retrieval_operator.domain.workloads import WorkloadStep

CONTRACTS = Path(__file__).resolve().parents[3] / "docs" / "contracts.md"


@pytest.fixture(scope="module")
def document(datasets, bundle_uri, generations, tmp_path_factory):
    stack = (bundle_uri, generations["global"])
    out = tmp_path_factory.mktemp("evaluation") / "out"
    request = EvaluationRequest(
        dataset=str(datasets["global"]),
        candidate=stack,
        champion=stack,
        untrained=stack,
        gates=parse_gates('[{"metric": "recall", "maxRegression": "0.02"}, {"segment": "category:x=y"}]'),
        ks=[10],
        segments=["all"],
        confidence=0.95,
        min_samples=300,
        pools=None,
        out=str(out),
        cache=None,
    )
    Evaluation(request).run()
    return json.loads((out / "evaluation.json").read_text())


def documented() -> dict:
    """The JSON example of section 7."""
    section = CONTRACTS.read_text().partition("## 7. evaluation.json")[2]
    return json.loads(re.search(r"```json\n(.*?)\n```", section, re.DOTALL)[1])


def test_evaluation_json_has_every_field_of_the_contract(document):
    expected = documented()
    assert set(expected) <= set(document)
    for part in ("dataset", "members", "coverage", "candidate"):
        assert set(expected[part]) == set(document[part])
    for gate in document["gates"]:
        assert set(gate) == set(expected["gates"][0])
    for row in document["metrics"]:
        assert set(row) == set(expected["metrics"][0])
        assert row["subject"] in expected["metrics"][0]["subject"].split("|")
        assert row["pool"] in expected["metrics"][0]["pool"].split("|")


def test_the_operator_reads_the_evaluation(document):
    report = read(EvaluationReport, document)
    assert [gate.problem for gate in report.gates] == [None, "NoSuchSegment"]
    assert report.gates[0].method == "exact"
    assert report.gates[0].n_to_decide > 0


def test_the_operator_reads_the_manifest(generations):
    manifest = Generation.open(generations["global"]).manifest
    report = read(IndexReport, manifest.document())
    assert (report.id, report.count, report.checks.self_hit) == (manifest.id, manifest.count, 1.0)


@pytest.fixture
def sharded():
    document = yaml.safe_load(
        """
        apiVersion: retrieval-operator.io/v1alpha1
        kind: RetrievalModel
        metadata: {name: feed}
        spec:
          storage: {uri: /store}
          data: {uri: /data, revision: "1"}
          model: {base: "preset:tiny", dimensions: [128, 64], servedDimension: 64}
          index: {factory: auto, servedK: 100, latencyTargetMs: 5, members: true, encodeShards: 4}
          promotion: {gates: [{min: "0.2"}]}
        """
    )
    return parse_manifest(document, "feed.yaml")


def understood(command, model) -> dict:
    workload = command(
        model,
        WorkloadStep.INDEX_SERVING,
        key="k",
        bundle_id="b-1",
        bundle="/b",
        data_uri="/data",
        previous="/indexes/before",
    )
    name, *rest = workload.arguments
    options = get_command(cli.app).commands[name].make_context(name, rest).params
    return {key: value for key, value in options.items() if value is not None}


def test_the_operator_speaks_the_command_line_of_the_index_build(sharded):
    assert understood(commands.index, sharded) == {
        "bundle": "/b", "expected_bundle_id": "b-1", "dataset": "/data", "kind": "serving",
        "out": "/store/default/feed/indexes/k", "factory": "auto", "served_k": 100, "shards": 4,
        "served_dimension": 64, "previous": "/indexes/before", "latency_target_ms": 5, "members": True,
        "device": "cpu",
    }  # fmt: skip


def test_the_operator_speaks_the_command_line_of_encoding(sharded):
    assert understood(commands.encode, sharded) == {
        "bundle": "/b", "expected_bundle_id": "b-1", "dataset": "/data", "kind": "serving",
        "out": "/store/default/feed/indexes/k", "shards": 4, "previous": "/indexes/before", "device": "cpu",
    }  # fmt: skip

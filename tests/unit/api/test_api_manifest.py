"""Malformed manifests are refused with the field's path as in YAML, what was found, and what is allowed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from retrieval_operator.api.objects import InvalidManifest, parse_manifest, parse_manifests

GOOD = yaml.safe_load(
    """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed}
spec:
  storage: {uri: /store}
  data: {uri: /data, revision: "1"}
  model: {base: "preset:tiny"}
  promotion: {gates: [{min: "0.2"}]}
"""
)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"kind": "Deployment"}, "kind: found 'Deployment', expected 'RetrievalModel'"),
    "another version": ({"apiVersion": "v1"}, "apiVersion: found 'v1'"),
    "a stray top-level field": ({"specs": {}}, "specs: unknown field"),
    "no spec": ({"spec": None}, "spec"),
    "a name with capitals": ({"metadata.name": "Feed"}, "metadata.name: found 'Feed'"),
    "a name of 33 characters": ({"metadata.name": "a" * 33}, "metadata.name"),
    "a typing error": ({"spec.promotin": {}}, "spec.promotin: unknown field"),
    "no storage": ({"spec.storage": ...}, "spec.storage: missing"),
    "no gates": ({"spec.promotion": {"gates": []}}, "spec.promotion.gates"),
    "a float threshold": (
        {"spec.promotion.gates": [{"min": 0.2}]},
        'spec.promotion.gates[0].min: found 0.2 (a number), expected a decimal in quotes such as "0.02"',
    ),
    "a boolean threshold": ({"spec.promotion.gates": [{"min": True}]}, "found True (a boolean)"),
    "a threshold above 1": ({"spec.promotion.gates": [{"min": "1.5"}]}, "less than or equal to 1"),
    "a threshold that is not a number": ({"spec.promotion.gates": [{"min": "NaN"}]}, "spec.promotion.gates[0].min"),
    "a gate without a bound": (
        {"spec.promotion.gates": [{"k": 10}]},
        "expected at least one of min, maxRegression, maxDropFromBest",
    ),
    "the same gate twice": (
        {"spec.promotion.gates": [{"min": "0.1"}, {"min": "0.2"}]},
        "found recall@10 (matched, all) more than once",
    ),
    "only comparing gates": (
        {"spec.promotion.gates": [{"maxRegression": "0.1"}]},
        "the first stack has no champion to be compared with",
    ),
    "only dry runs": ({"spec.promotion.gates": [{"min": "0.1", "dryRun": True}]}, "expected at least one"),
    "a hit rate in a pool": ({"spec.promotion.gates": [{"metric": "hitRate", "min": "0.1"}]}, 'expected "corpus"'),
    "an unknown metric": (
        {"spec.promotion.gates": [{"metric": "ndcg", "min": "0.1"}]},
        "expected 'recall' or 'hitRate'",
    ),
    "both base and bundleUri": ({"spec.model.bundleUri": "/b"}, "found both, expected exactly one of base"),
    "neither base nor bundleUri": ({"spec.model": {}}, "found neither"),
    "widths that do not descend": ({"spec.model.dimensions": [64, 128]}, "largest first"),
    "a served width that is not trained": (
        {"spec.model": {"base": "b", "dimensions": [128, 64], "servedDimension": 32}},
        "servedDimension: found 32, expected one of dimensions [128, 64]",
    ),
    "a schedule for an imported bundle": (
        {"spec.model": {"bundleUri": "/b"}, "spec.data.schedule": "0 3 * * *"},
        "an imported bundle is not retrained",
    ),
    "a cron expression with a word": ({"spec.data.schedule": "every day at 3"}, "is not a cron expression"),
    "a time zone nobody knows": (
        {"spec.data.timeZone": "Mars/Olympus"},
        "spec.data.timeZone: 'Mars/Olympus' is no time zone",
    ),
    "steps and epochs": (
        {"spec.training": {"hyperparameters": {"steps": 1, "epochs": 1}}},
        "found both steps and epochs",
    ),
    "a Job over several nodes": ({"spec.training": {"backend": "Job", "nodes": 2}}, "expected 1 (use PyTorchJob"),
    "fewer replicas at most than at least": ({"spec.serving": {"replicas": {"min": 3, "max": 2}}}, "at least min (3)"),
    "an index engine that is not built": ({"spec.index": {"engine": "hnswlib"}}, "expected 'faiss'"),
    "a factory with a shell in it": ({"spec.index": {"factory": "Flat; rm -rf"}}, "spec.index.factory"),
    "a URI with a line break": ({"spec.data.uri": "a\nb"}, "spec.data.uri"),
    "an empty data revision": ({"spec.data.revision": ""}, "spec.data.revision"),
    "a volume with two sources": (
        {"spec.training": {"pod": {"volumes": [{"name": "v", "mountPath": "/v", "secret": "a", "configMap": "b"}]}}},
        "spec.training.pod.volumes[0]: found 2 sources",
    ),
    "a variable without a value": (
        {"spec.serving": {"pod": {"env": [{"name": "A"}]}}},
        "spec.serving.pod.env[0]: found 0 sources",
    ),
    "prompts that are not an object": ({"spec.model.prompts": ["x"]}, "spec.model.prompts"),
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    return document


@pytest.mark.parametrize("title", BAD)
def test_a_bad_manifest_is_refused_with_words_a_person_understands(title: str) -> None:
    changes, words = BAD[title]
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(changed(changes), "feed.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("feed.yaml: ")
    assert "Value error" not in str(caught.value)


def test_all_problems_of_a_manifest_are_told_at_once() -> None:
    document = changed({"spec.data.revision": "", "spec.foo": 1, "metadata.name": "X"})
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(document, "feed.yaml")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found no document"),
        ("a: [", "not YAML"),
        ("- 1", "found list"),
        ("just words", "found str"),
    ],
)
def test_a_text_that_holds_no_manifest(text: str, words: str) -> None:
    with pytest.raises(InvalidManifest, match=words):
        parse_manifests(text, "feed.yaml")


def test_one_bad_document_among_good_ones_reads_none() -> None:
    with pytest.raises(InvalidManifest):
        parse_manifests(yaml.safe_dump_all([GOOD, changed({"spec.foo": 1})]), "feed.yaml")


def test_what_was_not_written_is_not_explicit() -> None:
    model = parse_manifest(GOOD, "feed.yaml")
    assert model.spec.explicit() == GOOD["spec"]


def test_a_manifest_survives_being_written_and_read() -> None:
    model = parse_manifest(changed({"spec.training": {"hyperparameters": {"learningRate": "0.0010"}}}), "feed.yaml")
    again = parse_manifest({**GOOD, "spec": model.spec.explicit()}, "again.yaml")
    assert again.spec == model.spec


def test_a_request_of_any_length_is_one_and_each_text_another() -> None:
    def request(text: str) -> str:
        document = changed({"metadata.annotations": {"retrieval-operator.io/retry": text, "example.org/note": text}})
        annotations = parse_manifest(document, "feed.yaml").metadata.annotations
        assert annotations["example.org/note"] == text
        return annotations["retrieval-operator.io/retry"]

    assert request("again") == "again"
    assert request("x" * 256) == "x" * 256
    long = request("x" * 257)
    assert len(long) == 256
    assert long == request("x" * 257) != request("x" * 258)

"""Hashes name revisions, generations and stacks. The golden file never changes: a change would retrain a fleet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.identity import (
    evaluation_generation_key,
    evaluation_key,
    generation_key,
    revision_hash,
    serving_hash,
    stack_id,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "identity.json"
BUNDLE, GENERATION = "b-0123456789abcdef", "g-0123456789abcdef"

SPECS = {
    "the smallest manifest": {},
    "every field that a revision hashes": {
        "spec.model.maxTokens": {"member": 128, "item": 48},
        "spec.model.pooling": "mean",
        "spec.training.image": "trainer:1",
        "spec.training.hyperparameters": {"steps": 10, "learningRate": "0.001", "logQ": True, "lora": {"rank": 8}},
    },
    "every field that a generation hashes": {
        "spec.index": {"engine": "faiss", "factory": "Flat", "servedK": 500, "latencyTargetMs": 20, "members": True},
        "spec.index.refresh": {"revision": "monday"},
        "spec.model.servedDimension": 64,
    },
    "every field that a stack hashes": {
        "spec.serving": {
            "image": "server:1",
            "connectionAgeSeconds": 30,
            "pod": {"env": [{"name": "A", "value": "1"}]},
            "resources": {"limits": {"cpu": "2"}},
            "replicas": {"min": 3},
        },
    },
}


def hashes(model: RetrievalModel) -> dict[str, str]:
    own = evaluation_generation_key(model.spec, BUNDLE, model.spec.data.uri, "")
    serving = serving_hash(model.spec)
    return {
        "revision": revision_hash(model.spec, ""),
        "revision in a slot": revision_hash(model.spec, "2026-11-22T03:00:00Z#1"),
        "generation": generation_key(model.spec, BUNDLE, "0a1b2c3d", ""),
        "evaluation generation": own,
        "evaluation generation in a slot": evaluation_generation_key(
            model.spec, BUNDLE, model.spec.data.uri, "2026-11-22T03:00:00Z#1"
        ),
        "evaluation": evaluation_key(model.spec, own, "", ""),
        "serving": serving,
        "stack": stack_id(BUNDLE, GENERATION, serving),
    }


def test_the_golden_file_of_hashes_never_changes(make: Callable[..., RetrievalModel]) -> None:
    """There is no update switch here on purpose: these values are in people's clusters."""
    found = {title: hashes(make(changes)) for title, changes in SPECS.items()}
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("spelling", ["0.05", "0.050"])
def test_a_threshold_in_the_gates_does_not_touch_the_revision(
    make: Callable[..., RetrievalModel], spelling: str
) -> None:
    gates = [{"min": spelling}]
    assert revision_hash(make({"spec.promotion.gates": gates}).spec, "") == revision_hash(make().spec, "")


def test_another_object_name_or_storage_gives_the_same_revision(make: Callable[..., RetrievalModel]) -> None:
    other = make({"metadata.name": "other", "spec.storage.uri": "/elsewhere", "spec.data.uri": "/moved"})
    assert revision_hash(other.spec, "") == revision_hash(make().spec, "")

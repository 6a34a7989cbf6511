"""The table of what a change does agrees with the hashes, field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.domain.changes import (
    EFFECTS,
    Effect,
    changed_paths,
    effect_of,
    effect_of_change,
    immutable_fields,
)
from retrieval_operator.domain.identity import generation_key, revision_hash, serving_hash

PROMPT = {"fields": [{"name": "title", "rendering": "text"}], "maxTokens": 64}
CHANGES: dict[str, tuple[Any, Effect]] = {
    "suspend": (True, Effect.IN_PLACE),
    "storage.uri": ("/other", Effect.REFUSED),
    "storage.secretRef": ("credentials", Effect.IN_PLACE),
    "storage.persistentVolumeClaim": ("claim", Effect.IN_PLACE),
    "data.uri": ("/data/two", Effect.IN_PLACE),
    "data.revision": ("2", Effect.REVISION),
    "data.schedule": ("0 3 * * *", Effect.IN_PLACE),
    "data.timeZone": ("Europe/Berlin", Effect.IN_PLACE),
    "data.startingDeadlineSeconds": (60, Effect.IN_PLACE),
    "model.base": ("/bases/other", Effect.REVISION),
    "model.dimensions": ([128], Effect.REVISION),
    "model.maxTokens": ({"member": 64}, Effect.REVISION),
    "model.prompts": ({"member": PROMPT, "item": PROMPT}, Effect.REVISION),
    "model.servedDimension": (64, Effect.GENERATION),
    "training.backend": ("Job", Effect.IN_PLACE),
    "training.image": ("trainer:2", Effect.REVISION),
    "training.nodes": (2, Effect.IN_PLACE),
    "training.hyperparameters": ({"steps": 5}, Effect.REVISION),
    "training.activeDeadlineSeconds": (100, Effect.IN_PLACE),
    "registry.connection": ("other", Effect.REFUSED),
    "registry.name": ("other", Effect.REFUSED),
    "index.factory": ("Flat", Effect.GENERATION),
    "index.servedK": (100, Effect.GENERATION),
    "index.latencyTargetMs": (5, Effect.GENERATION),
    "index.members": (True, Effect.GENERATION),
    "index.encodeShards": (4, Effect.IN_PLACE),
    "index.refresh.revision": ("now", Effect.GENERATION),
    "index.refresh.schedule": ("0 * * * *", Effect.IN_PLACE),
    "serving.image": ("server:2", Effect.STACK),
    "serving.connectionAgeSeconds": (5, Effect.STACK),
    "serving.resources": ({"limits": {"cpu": "1"}}, Effect.STACK),
    "serving.pod": ({"env": [{"name": "A", "value": "1"}]}, Effect.STACK),
    "serving.replicas": ({"min": 2}, Effect.IN_PLACE),
    "evaluation.k": ([10], Effect.IN_PLACE),
    "promotion.mode": ("Manual", Effect.IN_PLACE),
    "rollback.windowSeconds": (5, Effect.IN_PLACE),
    "revisionHistoryLimit": (3, Effect.IN_PLACE),
    "deletionPolicy": ("Delete", Effect.IN_PLACE),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_change_does_what_the_table_says_and_moves_just_that_hash(
    make: Callable[..., RetrievalModel], path: str
) -> None:
    value, effect = CHANGES[path]
    before, after = make().spec, make({f"spec.{path}": value}).spec
    assert effect_of_change(before, after) is effect
    moved = {
        Effect.REVISION: revision_hash(before, "") != revision_hash(after, ""),
        Effect.GENERATION: generation_key(before, "b", "r", "") != generation_key(after, "b", "r", ""),
        Effect.STACK: serving_hash(before) != serving_hash(after),
    }
    assert moved == {kind: kind is effect for kind in moved}


def test_every_field_of_the_manifest_is_in_the_table() -> None:
    for path in _paths(RetrievalModelSpec):
        effect_of(path)
    known = set(_paths(RetrievalModelSpec)) | {path.split(".")[0] for path in _paths(RetrievalModelSpec)}
    assert set(EFFECTS) <= known


def _paths(kind: Any, prefix: str = "") -> list[str]:
    paths = []
    for name, field in kind.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        inner = field.annotation
        paths += [path, *(_paths(inner, f"{path}.") if hasattr(inner, "model_fields") else [])]
    return paths


def test_changed_paths_are_those_a_person_edited(make: Callable[..., RetrievalModel]) -> None:
    after = make({"spec.data.revision": "2", "spec.serving.replicas": {"min": 2}}).spec
    assert changed_paths(make().spec, after) == ["data.revision", "serving.replicas.min"]


def test_writing_down_an_immutable_default_is_no_change_of_it(make: Callable[..., RetrievalModel]) -> None:
    written = {"spec.index.engine": "faiss", "spec.registry.name": "default.feed"}
    assert immutable_fields(make(written)) == immutable_fields(make())

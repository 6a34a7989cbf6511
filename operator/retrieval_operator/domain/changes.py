"""What a spec change does, as a table; a test checks it against the hashes, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import RetrievalModelSpec


class Effect(StrEnum):
    """Ordered from the most costly: a change of several fields does the most costly of them."""

    REFUSED = "refused"  # immutable
    REVISION = "new revision"  # train (or import), evaluate, gates, index, serve
    GENERATION = "new index generation"  # index, integrity gates, serve
    STACK = "new stack"  # serve the same bundle and generation with another server
    IN_PLACE = "in place"  # nothing is rebuilt


# Longest matching path wins. Every leaf of the spec is under exactly one of these.
EFFECTS: Mapping[str, Effect] = {
    "suspend": Effect.IN_PLACE,
    "storage.uri": Effect.REFUSED,
    "storage": Effect.IN_PLACE,
    "data": Effect.IN_PLACE,
    "data.revision": Effect.REVISION,
    "model": Effect.REVISION,
    "model.servedDimension": Effect.GENERATION,
    "training": Effect.IN_PLACE,
    "training.image": Effect.REVISION,
    "training.hyperparameters": Effect.REVISION,
    "registry": Effect.REFUSED,
    "index.engine": Effect.REFUSED,
    "index": Effect.IN_PLACE,
    "index.factory": Effect.GENERATION,
    "index.servedK": Effect.GENERATION,
    "index.latencyTargetMs": Effect.GENERATION,
    "index.members": Effect.GENERATION,
    "index.refresh.revision": Effect.GENERATION,
    "serving": Effect.STACK,
    "serving.replicas": Effect.IN_PLACE,
    "evaluation": Effect.IN_PLACE,
    "promotion": Effect.IN_PLACE,
    "rollback": Effect.IN_PLACE,
    "revisionHistoryLimit": Effect.IN_PLACE,
    "deletionPolicy": Effect.IN_PLACE,
}
_COST = list(Effect)


def effect_of(path: str) -> Effect:
    """The effect of changing the field at a dotted manifest path (list positions left out)."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        effect = EFFECTS.get(".".join(parts[:length]))
        if effect is not None:
            return effect
    raise KeyError(f"{path} is in no row of the table of changes")


def changed_paths(old: RetrievalModelSpec, new: RetrievalModelSpec) -> list[str]:
    """The dotted paths whose explicitly set values differ, in alphabetical order."""
    before, after = dict(_leaves("", old.explicit())), dict(_leaves("", new.explicit()))
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def effect_of_change(old: RetrievalModelSpec, new: RetrievalModelSpec) -> Effect:
    """The most costly effect among the changed fields; IN_PLACE when nothing changed."""
    effects = [effect_of(path) for path in changed_paths(old, new)]
    return min(effects, key=_COST.index, default=Effect.IN_PLACE)


def immutable_fields(model: RetrievalModel) -> dict[str, str]:
    """Values that may never change, by path, as they are in effect (so that adding a default explicitly is fine)."""
    spec = model.spec
    return {
        "spec.storage.uri": spec.storage.uri,
        "spec.registry.connection": spec.registry.connection,
        "spec.registry.name": model.registered_model_name,
        "spec.index.engine": spec.index.engine,
    }


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{path}.{key}" if path else key, inner)]
    return [(path, value)]

"""What every child of an object has in common: its labels, its owner, and that it is created once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache, owner_uids
from retrieval_operator.adapters.kubernetes.kinds import Object, kind_of
from retrieval_operator.api.constants import API_VERSION, KIND, LABEL_MANAGED_BY, LABEL_NAME, MANAGED_BY
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import Rejected, Retryable


def metadata(model: RetrievalModel, name: str, labels: Mapping[str, str] | None = None) -> Object:
    """The metadata of a child: labelled with whose it is, owned by the object, in its namespace."""
    return {
        "name": name,
        "namespace": model.metadata.namespace,
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_NAME: model.metadata.name, **(labels or {})},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": model.metadata.name,
                "uid": model.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


async def create_once(api: KubernetesApi, cache: Cache, model: RetrievalModel, obj: Object) -> None:
    """Create the child unless the object has it already.

    Raises Retryable while the name is taken by what a former object of the same name left, or by what is not seen yet;
    Rejected when somebody else has it.
    """
    if await api.create(obj) is not None:
        return
    kind, namespace, name = kind_of(obj), model.metadata.namespace, obj["metadata"]["name"]
    known = cache.get(kind, namespace, name)
    if known is not None and model.metadata.uid in owner_uids(known):
        return
    # The watches tell of what has our label: of somebody else's object only the API server does.
    existing = known or await api.get(kind, namespace, name)
    if existing is None:
        raise Retryable(f"the name of {kind} {namespace}/{name} was taken a moment ago; trying again")
    raise taken(model, existing)


def is_going(obj: Object) -> bool:
    """Whether it is being deleted: it is there until its finalizers, dependents or grace are done."""
    return "deletionTimestamp" in obj["metadata"]


def taken(model: RetrievalModel, existing: Object) -> Retryable | Rejected:
    """Why a child of the object cannot have the name that this one has."""
    metadata = existing["metadata"]
    what = f"{existing['kind']} {metadata['namespace']}/{metadata['name']}"
    is_ours = metadata.get("labels", {}).get(LABEL_MANAGED_BY) == MANAGED_BY
    if model.metadata.uid in owner_uids(existing):
        if is_ours:
            return Retryable(f"{what} is there and was not told of yet; trying again")
        return Rejected(f"{what} has lost its label, so nothing is heard of it; set {LABEL_MANAGED_BY}={MANAGED_BY}")
    if any(owner["kind"] == KIND for owner in metadata.get("ownerReferences", [])):
        return Retryable(f"the name of {what} is taken by a child of another {KIND}; waiting until it is removed")
    return Rejected(
        f"the name of {what} is taken by somebody else's; delete or rename that one, or give the {KIND} another name"
    )


def seconds(timestamp: str) -> int:
    """Seconds since the epoch of a Kubernetes timestamp, `2026-01-31T12:00:00Z`."""
    return int(dt.datetime.fromisoformat(timestamp).timestamp())

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
    kind, name = kind_of(obj), obj["metadata"]["name"]
    taken = f"the name of {kind} {model.metadata.namespace}/{name} is taken"
    existing = cache.get(kind, model.metadata.namespace, name)
    if existing is None:
        raise Retryable(f"{taken}, by what is not known yet; trying again")
    if model.metadata.uid in owner_uids(existing):
        return
    if any(owner["kind"] == KIND for owner in existing["metadata"].get("ownerReferences", [])):
        raise Retryable(f"{taken} by a child of another {KIND}; waiting until it is removed")
    raise Rejected(f"{taken} by somebody else's; delete or rename that one, or give the {KIND} another name")


def seconds(timestamp: str) -> int:
    """Seconds since the epoch of a Kubernetes timestamp, `2026-01-31T12:00:00Z`."""
    return int(dt.datetime.fromisoformat(timestamp).timestamp())

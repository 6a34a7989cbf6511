"""What the watches have told: the objects as last seen, by name and by owner. `observe` reads nothing else.

Objects are shared: whoever changes one changes what everybody sees, so nobody does.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import POD, Kind, Object, kind_of
from retrieval_operator.api.constants import LABEL_NAME

# Objects that are gone, so that a late answer to a write does not bring one back. More than can be under way.
_REMOVED_KEPT = 2048


class Cache:
    """Fed by watches (kopf_app) and by answers to our own writes (WriteThrough). Use from one event loop only."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = defaultdict(dict)
        self._owned: dict[tuple[Kind, str, str], dict[str, Object]] = defaultdict(dict)
        self._labelled: dict[tuple[Kind, str, str], dict[str, Object]] = defaultdict(dict)
        self._removed: OrderedDict[str, int] = OrderedDict()  # by UID, the version with which it went
        self._watched: set[Kind] = set()

    def watch(self, kind: Kind) -> None:
        """From now on the cache is complete for this kind: its first listing is in."""
        self._watched.add(kind)

    def unwatch(self, kind: Kind) -> None:
        """The kind's definition is not installed (any more): nothing of it exists."""
        self._watched.discard(kind)
        for obj in self.all(kind):
            self.remove(kind, obj)

    def is_watched(self, kind: Kind) -> bool:
        """False: nothing is known about this kind, as its definition is not installed or its listing not yet in."""
        return kind in self._watched

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._objects[kind].get((namespace, name))

    def all(self, kind: Kind) -> list[Object]:
        return list(self._objects[kind].values())

    def children(self, kind: Kind, namespace: str, owner_uid: str) -> list[Object]:
        """The objects of this kind that name the UID as an owner, by name.

        Only those in the owner's own namespace are its children: whoever writes in another one may name any UID.
        """
        found = self._owned.get((kind, namespace, owner_uid), {})
        return [found[name] for name in sorted(found)]

    def labelled(self, kind: Kind, namespace: str, name: str) -> list[Object]:
        """The objects with the label of the RetrievalModel `name`, by name. Whose they are, their owners say.

        For pods that others made from our template: their owner is a ReplicaSet, not the RetrievalModel.
        """
        found = self._labelled.get((kind, namespace, name), {})
        return [found[each] for each in sorted(found)]

    def put(self, kind: Kind, obj: Object) -> bool:
        """Take the object in, unless what is known is newer. Returns whether anything changed."""
        metadata = obj["metadata"]
        name = _name(obj)
        # A newer one than what went is back: its label was taken off and set again.
        if int(metadata["resourceVersion"]) <= self._removed.get(metadata["uid"], -1):
            return False
        known = self._objects[kind].get(name)
        if known is not None and not _is_newer(metadata, known["metadata"]):
            return False
        if known is not None:
            self._unlink(kind, known)
        kept = _kept(kind, obj)
        self._objects[kind][name] = kept
        for uid in owner_uids(kept):
            self._owned[kind, name[0], uid][name[1]] = kept
        if label := _label(kept):
            self._labelled[kind, name[0], label][name[1]] = kept
        return True

    def remove(self, kind: Kind, obj: Object) -> bool:
        """The object is gone. Returns whether it was known; a newer one, or a successor of the same name, stays."""
        metadata = obj["metadata"]
        uid = metadata["uid"]
        self._removed[uid] = max(int(metadata["resourceVersion"]), self._removed.get(uid, -1))
        while len(self._removed) > _REMOVED_KEPT:
            self._removed.popitem(last=False)
        known = self._objects[kind].get(_name(obj))
        if known is None or known["metadata"]["uid"] != uid or _is_newer(known["metadata"], metadata):
            return False
        del self._objects[kind][_name(obj)]
        self._unlink(kind, known)
        return True

    def _unlink(self, kind: Kind, known: Object) -> None:
        namespace, name = _name(known)
        for uid in owner_uids(known):
            owned = self._owned[kind, namespace, uid]
            owned.pop(name, None)
            if not owned:
                del self._owned[kind, namespace, uid]
        if label := _label(known):
            labelled = self._labelled[kind, namespace, label]
            labelled.pop(name, None)
            if not labelled:
                del self._labelled[kind, namespace, label]


class WriteThrough:
    """A KubernetesApi that puts the answers to its writes into the cache, so that the next pass sees them.

    A deletion is left to the watch: only it knows when the object is really gone.
    """

    def __init__(self, api: KubernetesApi, cache: Cache) -> None:
        self._api = api
        self._cache = cache

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        return await self._api.get(kind, namespace, name)

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        return await self._api.list(kind, namespace, labels)

    async def create(self, obj: Object) -> Object | None:
        created = await self._api.create(obj)
        return None if created is None else self._seen(created)

    async def apply_status(self, obj: Object, *, manager: str) -> Object:
        return self._seen(await self._api.apply_status(obj, manager=manager))

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, *, resource_version: str = ""
    ) -> Object:
        return self._seen(await self._api.patch(kind, namespace, name, patch, resource_version=resource_version))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", foreground: bool = False) -> None:
        await self._api.delete(kind, namespace, name, uid=uid, foreground=foreground)

    def _seen(self, obj: Object) -> Object:
        kind = kind_of(obj)
        if self._cache.is_watched(kind):  # what no watch keeps up to date would stay for ever
            self._cache.put(kind, obj)
        return obj


def owner_uids(obj: Object) -> Iterable[str]:
    """The UIDs of its owners."""
    return [reference["uid"] for reference in obj["metadata"].get("ownerReferences", [])]


def _kept(kind: Kind, obj: Object) -> Object:
    """What is of use here of an object: the rest would be most of the process's memory.

    Who set which field is half of an object's size. Of pods, of which a step may have a thousand and whose records stay
    as long as their Job's, only what they are and how they are is read: what they were made from, the Job says.
    """
    unread = {"managedFields", "annotations"} if kind == POD else {"managedFields"}
    kept = {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key not in unread}}
    if kind == POD:
        kept.pop("spec", None)
    return kept


def _name(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _label(obj: Object) -> str:
    return str(obj["metadata"].get("labels", {}).get(LABEL_NAME, ""))


def _is_newer(metadata: Object, known: Object) -> bool:
    """By resourceVersion: integers that grow with every change of any object of the kind, a successor's included.

    So what is still told of a predecessor (kopf keeps the order of one object's events only) replaces nothing.
    """
    return int(metadata["resourceVersion"]) > int(known["resourceVersion"])

"""The adapters of the port ModelStore, and what a person does to the objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from contract_objects import NOW
from kubernetes_world import KubernetesWorld

from retrieval_operator.adapters.kubernetes.kinds import EVENT, RETRIEVAL_MODEL
from retrieval_operator.adapters.kubernetes.models import KubernetesModelStore
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.adapters.memory import MemoryModelStore
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import ModelStore


class ModelStoreHarness(Protocol):
    store: ModelStore

    async def create(self, manifest: RetrievalModel) -> RetrievalModel: ...

    async def annotate(self, key: str, name: str, value: str) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        """(reason, message, count)"""


class MemoryModels:
    def __init__(self) -> None:
        self.store = MemoryModelStore()

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        return self.store.apply(manifest, now=NOW)

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.store.annotate(key, {name: value})

    async def delete(self, key: str) -> None:
        self.store.request_deletion(key, now=NOW)

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        return [(record.event.reason, record.event.message, record.count) for record in self.store.events(key)]


class LocalModels:
    def __init__(self, home: LocalHome) -> None:
        self.store = LocalMachine(home, repairs=False).store

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        return self.store.apply(manifest, now=NOW).model

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.store.annotate(key, {name: value})

    async def delete(self, key: str) -> None:
        self.store.request_deletion(key, now=NOW)

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        return [(record.reason, record.message, record.count) for record in self.store.events(key)]


class KubernetesModels:
    def __init__(self) -> None:
        self.world = KubernetesWorld(lambda: NOW)
        self.world.watch(RETRIEVAL_MODEL)
        self.store = KubernetesModelStore(self.world.api, self.world.cache, lambda: NOW, instance="test")

    async def create(self, manifest: RetrievalModel) -> RetrievalModel:
        metadata = {"name": manifest.metadata.name, "namespace": manifest.metadata.namespace}
        type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
        self.world.put({**type_, "metadata": metadata, "spec": manifest.spec.explicit()})
        model = await self.store.get(manifest.key)
        assert model is not None
        return model

    async def annotate(self, key: str, name: str, value: str) -> None:
        self.world.change(RETRIEVAL_MODEL, *key.split("/"), {"metadata": {"annotations": {name: value}}})

    async def delete(self, key: str) -> None:
        self.world.remove(RETRIEVAL_MODEL, *key.split("/"))

    async def events(self, key: str) -> list[tuple[str, str, int]]:
        found = self.world.objects(EVENT)
        return [(event["reason"], event["message"], event["count"]) for event in found]


MODEL_STORES: dict[str, Callable[[Path], ModelStoreHarness]] = {
    "memory": lambda _path: MemoryModels(),
    "local": lambda path: LocalModels(LocalHome(path / "home")),
    "kubernetes": lambda _path: KubernetesModels(),
}

"""A cluster in memory (tests/shared/kubernetes_world.py) with the adapters of serving over it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kubernetes_world import KubernetesWorld

from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    POD,
    POD_DISRUPTION_BUDGET,
    RETRIEVAL_MODEL,
    SERVICE,
)
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord

NOW = 1_700_000_000


class Cluster:
    """`model` is the object feed in the namespace tenant; `now` is the adapters' clock."""

    def __init__(self) -> None:
        self.now = NOW
        self.world = KubernetesWorld(lambda: self.now)
        self.world.watch(SERVICE, POD, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)
        self.model = self.another_object("feed")
        self.restart()

    def restart(self) -> None:
        """Another operator: nothing is remembered but what is in the cluster."""
        images = {"encoderServer": "server:1"}
        self.stacks = KubernetesStacks(self.world.api, self.world.cache, lambda: self.now, images=images)
        self.traffic = KubernetesTraffic(self.world.api, self.world.cache, lambda: self.now)

    def another_object(self, name: str) -> RetrievalModel:
        type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
        spec = {
            "storage": {"uri": "s3://bucket/store"},
            "data": {"uri": "s3://bucket/data", "revision": "1"},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
        }
        made = self.world.put({**type_, "metadata": {"name": name, "namespace": "tenant"}, "spec": spec})
        metadata = {"name": name, "namespace": "tenant", "uid": made["metadata"]["uid"]}
        return parse_manifest({**type_, "metadata": metadata, "spec": spec}, "test")

    async def switch(self, record: StackRecord) -> None:
        version = (await self.traffic.observe(self.model)).version
        await self.traffic.switch(self.model, record, version, self.now)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def record() -> Callable[[str], StackRecord]:
    """record("s1") names everything after the stack."""

    def make(stack: str, revision: str = "revision") -> StackRecord:
        return StackRecord(
            stack=stack,
            bundle_id=f"b-{stack}",
            bundle_uri=f"s3://bucket/bundles/{stack}",
            generation_id=f"g-{stack}",
            generation_uri=f"s3://bucket/generations/{stack}",
            generation_key="key",
            serving_hash="hash",
            revision=revision,
        )

    return make


@pytest.fixture
def as_other() -> Callable[[RetrievalModel], RetrievalModel]:
    """The object as it was before it was deleted and created again under the same name."""
    return lambda model: model.model_copy(
        update={"metadata": model.metadata.model_copy(update={"uid": "uid-of-the-former"})}
    )

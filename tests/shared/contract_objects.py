"""What the contract tests of all ports are about: objects, records, programs, and waiting for what must come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes_world import KubernetesWorld

from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL
from retrieval_operator.adapters.local.programs import Program
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord

PROGRAMS_DIRECTORY = Path(__file__).parents[1] / "contract" / "ports" / "programs"
PROGRAMS = {
    "retrieval-train": Program(target=(str(PROGRAMS_DIRECTORY / "program.py"),)),
    "retrieval-encoder-server": Program(target=(str(PROGRAMS_DIRECTORY / "server.py"),)),
}
NOW = 1_700_000_000
# Generous: it only ends tests that fail.
TIMEOUT_S = 20.0


async def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of the condition, which may be a coroutine function."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


def manifest(name: str = "feed", **spec: Any) -> RetrievalModel:
    return parse_manifest(
        {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": name},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "promotion": {"gates": [{"min": "0.1"}]},
                **spec,
            },
        },
        "test",
    )


def with_uid(model: RetrievalModel, uid: str) -> RetrievalModel:
    return model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": uid})})


def in_cluster(world: KubernetesWorld, model: RetrievalModel) -> RetrievalModel:
    """The object as it is in the world, with the UID it got there."""
    type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
    metadata = {"name": model.metadata.name, "namespace": model.metadata.namespace}
    return with_uid(model, world.put({**type_, "metadata": metadata, "spec": {}})["metadata"]["uid"])


def stack_record(stack: str, bundle_uri: str = "/bundle") -> StackRecord:
    return StackRecord(
        stack=stack,
        bundle_id=f"b-{stack}",
        bundle_uri=bundle_uri,
        generation_id=f"g-{stack}",
        generation_uri="/generation",
        generation_key="key",
        serving_hash="hash",
        revision="revision",
    )

"""Stacks and the traffic switch on a real API server: what it stores, allows and compares. KServe's controller is not
here; its definition is, where the machine has it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from native_cluster.binaries import Binaries
from native_cluster.layout import default_cache
from operator_process import is_served, until

from retrieval_operator.adapters.kubernetes.cache import Cache, WriteThrough
from retrieval_operator.adapters.kubernetes.client import KubernetesClient, connected
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Object,
    kind_of,
)
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord
from retrieval_operator.ports import Stale

pytestmark = pytest.mark.e2e

GOLDEN = Path(__file__).parents[2] / "golden" / "kubernetes"
NAMESPACE = "tenant"  # of the golden manifests
DEFINITION = "inferenceservices.serving.kserve.io"
DEADLINE_S = 60
NOW = 1_700_000_000
MANIFESTS = [
    manifest
    for name in ("stack", "stack-full", "stable-service")
    for manifest in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text())
]
# Of a predictor, what is not its pods'.
EXTENSIONS = {"minReplicas", "maxReplicas", "deploymentStrategy", "labels", "annotations"}


@pytest.fixture(scope="module")
def namespace(own_api_server: Path) -> Iterator[Path]:
    """The kubeconfig; the namespace enforces PodSecurity restricted, and KServe's definition is installed."""
    definition = _definition()
    with config.new_client_from_config(config_file=str(own_api_server)) as connection:
        core = client.CoreV1Api(connection)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": NAMESPACE, "labels": labels}})
        for account in ("default", "reader"):  # no controller runs here that would make the first
            core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": account}})
        # No webhook runs here that would convert or complete anything.
        client.ApiextensionsV1Api(connection).create_custom_resource_definition(definition)
        custom = client.CustomObjectsApi(connection)
        until(lambda: is_served(custom, INFERENCE_SERVICE, NAMESPACE), "InferenceServices are served")
        yield own_api_server


def _definition() -> Object:
    modules = Path(os.environ.get("GOMODCACHE", Path.home() / "go" / "pkg" / "mod"))
    places = [Binaries(default_cache()).file("kserve", "install")]
    places += sorted(modules.glob("github.com/kserve/kserve@*/install"))
    files = [file for place in places for file in sorted(place.glob("*/kserve.yaml"), reverse=True)]
    if not files:
        pytest.skip("not run: KServe's definitions are not on this machine (make cluster-up brings them)")
    # It is one of some 60 documents, 7 MB in all, and most of the time is YAML's.
    text = next(part for part in files[0].read_text().split("\n---\n") if f"\n  name: {DEFINITION}\n" in part)
    definition: Object = yaml.load(text, Loader=yaml.CSafeLoader)
    definition["spec"].pop("conversion", None)
    return definition


@pytest.fixture
async def api(namespace: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubernetesClient]:
    monkeypatch.setenv("KUBECONFIG", str(namespace))
    async with connected("test") as connection:
        yield connection


class Serving:
    """The adapters over the server, each with a cache of its own, which hears of nothing but its own writes."""

    def __init__(self, api: KubernetesClient, model: RetrievalModel) -> None:
        self.model = model
        self.cache = Cache()
        for kind in (SERVICE, INFERENCE_SERVICE, POD_DISRUPTION_BUDGET, POD):
            self.cache.watch(kind)
        through = WriteThrough(api, self.cache)
        self.stacks = KubernetesStacks(through, self.cache, lambda: NOW, images={"encoderServer": "server:1"})
        self.traffic = KubernetesTraffic(through, self.cache, lambda: NOW)

    async def version(self) -> str:
        return (await self.traffic.observe(self.model)).version

    async def hear(self, api: KubernetesClient) -> None:
        """What a watch would have told by now."""
        for kind in (SERVICE, INFERENCE_SERVICE, POD_DISRUPTION_BUDGET):
            for obj in await api.list(kind, NAMESPACE, {}):
                self.cache.put(kind, obj)


def model(name: str) -> RetrievalModel:
    metadata = {"name": name, "namespace": NAMESPACE, "uid": f"uid-of-{name}"}
    spec = {
        "storage": {"uri": "s3://bucket/store"},
        "data": {"uri": "s3://bucket/data", "revision": "1"},
        "model": {"base": "preset:tiny"},
        "promotion": {"gates": [{"min": "0.1"}]},
    }
    document = {"apiVersion": "retrieval-operator.io/v1alpha1", "kind": "RetrievalModel"}
    return parse_manifest({**document, "metadata": metadata, "spec": spec}, "test")


def record(stack: str) -> StackRecord:
    return StackRecord(
        stack=stack,
        bundle_id=f"b-{stack}",
        bundle_uri="s3://bucket/bundle",
        generation_id=f"g-{stack}",
        generation_uri="s3://bucket/generation",
        generation_key="key",
        serving_hash="hash",
        revision="revision",
    )


def changed_fields(sent: Any, stored: Any, path: str = "") -> list[str]:
    """What the API server dropped, or changed. It may add, also to the end of lists (tolerations)."""
    if isinstance(sent, dict):
        found = stored or {}
        return [line for key, value in sent.items() for line in changed_fields(value, found.get(key), f"{path}.{key}")]
    if isinstance(sent, list):
        found = [*(stored or []), *[None] * len(sent)]
        pairs = enumerate(zip(sent, found, strict=False))
        return [line for number, (ours, theirs) in pairs for line in changed_fields(ours, theirs, f"{path}[{number}]")]
    return [] if sent == stored else [f"{path}: sent {sent!r}, stored {stored!r}"]


async def test_every_golden_manifest_is_stored_whole(api: KubernetesClient) -> None:
    for number, manifest in enumerate(MANIFESTS):
        sent = {**manifest, "metadata": {**manifest["metadata"], "name": f"golden-{number}"}}
        stored = await api.create(sent)
        assert stored is not None
        assert changed_fields(sent, stored) == []
        await api.delete(kind_of(sent), NAMESPACE, f"golden-{number}")


async def test_the_pods_are_allowed_where_restricted_is_enforced(api: KubernetesClient) -> None:
    predictors = [one["spec"]["predictor"] for one in MANIFESTS if one["kind"] == INFERENCE_SERVICE.kind]
    assert len(predictors) == 2
    for predictor in predictors:
        metadata = {"name": "pod", "namespace": NAMESPACE, "labels": predictor["labels"]}
        spec = {key: value for key, value in predictor.items() if key not in EXTENSIONS}
        stored = await api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        assert stored is not None
        assert changed_fields(spec, stored["spec"]) == []
        await api.delete(POD, NAMESPACE, "pod")
        assert await _is_gone(api, POD, "pod")


async def _is_gone(api: KubernetesClient, kind: Any, name: str) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while await api.get(kind, NAMESPACE, name) is not None:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


async def test_scaling_changes_the_numbers_alone(api: KubernetesClient) -> None:
    serving = Serving(api, model("scaled"))
    await serving.stacks.create(serving.model, record("s1"), 1, 2)
    before = await api.get(INFERENCE_SERVICE, NAMESPACE, "scaled-s1")
    await serving.stacks.scale(serving.model, "s1", 3, 5)
    after = await api.get(INFERENCE_SERVICE, NAMESPACE, "scaled-s1")
    assert before is not None and after is not None
    assert (after["spec"]["predictor"].pop("minReplicas"), after["spec"]["predictor"].pop("maxReplicas")) == (3, 5)
    assert (before["spec"]["predictor"].pop("minReplicas"), before["spec"]["predictor"].pop("maxReplicas")) == (1, 2)
    assert after["spec"] == before["spec"]
    assert after["metadata"].get("annotations") == before["metadata"].get("annotations")
    seen = (await serving.stacks.observe(serving.model))["s1"]
    assert (seen.replicas, seen.max_replicas, seen.complete) == (3, 5, True)


async def test_the_switch_is_compared_by_the_api_server(api: KubernetesClient) -> None:
    """Two operators that believe the same: one switches, the other is told that its view is old."""
    ours, theirs = Serving(api, model("feed")), Serving(api, model("feed"))
    for stack in ("s1", "s2", "s3"):
        await ours.stacks.create(ours.model, record(stack), 1)
    await ours.traffic.switch(ours.model, record("s1"), await ours.version(), NOW)
    await theirs.hear(api)
    assert await ours.version() == await theirs.version()
    version = await theirs.version()

    results = await asyncio.gather(
        ours.traffic.switch(ours.model, record("s2"), version, NOW + 1),
        theirs.traffic.switch(theirs.model, record("s3"), version, NOW + 1),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "Stale"]
    winner, loser = (ours, theirs) if results[0] is None else (theirs, ours)
    live = (await winner.traffic.observe(winner.model)).live
    service = await api.get(SERVICE, NAMESPACE, "feed")
    assert live is not None and service is not None
    assert service["spec"]["selector"]["retrieval-operator.io/stack"] == live.stack

    with pytest.raises(Stale):
        await loser.traffic.switch(loser.model, record("s3" if loser is theirs else "s2"), version, NOW + 2)
    await loser.hear(api)
    assert await loser.traffic.observe(loser.model) == await winner.traffic.observe(winner.model)
    await loser.traffic.switch(loser.model, record("s1"), await loser.version(), NOW + 3)
    seen = await loser.traffic.observe(loser.model)
    assert (seen.live, seen.previous, seen.switched_at) == (record("s1"), live.stack, NOW + 3)


async def test_a_first_switch_and_another_first_switch(api: KubernetesClient) -> None:
    ours, theirs = Serving(api, model("first")), Serving(api, model("first"))
    for stack in ("s1", "s2"):
        await ours.stacks.create(ours.model, record(stack), 1)
    await theirs.hear(api)
    await ours.traffic.switch(ours.model, record("s1"), await ours.version(), NOW)
    version = await theirs.version()
    with pytest.raises(Exception, match="first"):
        await theirs.traffic.switch(theirs.model, record("s2"), version, NOW)
    await theirs.hear(api)
    assert (await theirs.traffic.observe(theirs.model)).live == record("s1")


async def test_a_stack_that_was_removed_leaves_nothing(api: KubernetesClient) -> None:
    serving = Serving(api, model("removed"))
    await serving.stacks.create(serving.model, record("s1"), 1)
    await serving.stacks.delete(serving.model, "s1")
    for kind in (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE):
        assert await _is_gone(api, kind, "removed-s1")

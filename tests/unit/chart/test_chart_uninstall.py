"""What the uninstall hook does to a cluster: the operator stops, our finalizer goes, and nothing else changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kubernetes_world import KubernetesWorld
from typer.testing import CliRunner

from retrieval_operator.adapters.kubernetes import permissions, uninstall
from retrieval_operator.adapters.kubernetes.kinds import DEPLOYMENT, POD, RETRIEVAL_MODEL
from retrieval_operator.api.constants import API_VERSION, FINALIZER, KIND
from retrieval_operator.cli import app
from retrieval_operator.ports import Stale

LABELS = {"app": "operator"}


@pytest.fixture
def world() -> KubernetesWorld:
    return KubernetesWorld(lambda: 1_000)


def add_object(world: KubernetesWorld, key: str, *finalizers: str, **more: Any) -> None:
    namespace, name = key.split("/")
    metadata = {"namespace": namespace, "name": name, "finalizers": list(finalizers), **more}
    world.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}})


def finalizers(world: KubernetesWorld) -> dict[str, list[str]]:
    found = {}
    for obj in world.objects(RETRIEVAL_MODEL):
        found[f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"] = obj["metadata"].get("finalizers", [])
    return found


def add_operator(world: KubernetesWorld) -> None:
    template = {"metadata": {"labels": LABELS}, "spec": {"containers": []}}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    metadata = {"namespace": "ops", "name": "operator"}
    owner = world.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    world.add_pod(owner, template, "operator-1")
    world.add_pod(owner, {"metadata": {"labels": {"app": "other"}}}, "other-1")


class Pauses:
    """Instead of sleeping: what happens in the cluster meanwhile. Ends the test when nothing is left to happen."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    async def __call__(self) -> None:
        assert self.steps, "waits for something that never comes"
        self.steps.pop(0)()


def nothing() -> None: ...


async def allowed_requests(world: KubernetesWorld, work: Awaitable[Any], *scopes: str) -> Any:
    """The result of the work, once it is known to have asked only for what the chart's rules of these scopes allow."""
    result = await work
    rules = {(verb, row.kind.kind) for scope in scopes for row in permissions.SCOPES[scope] for verb in row.verbs}
    assert {(verb, kind) for verb, kind, _ in world.requests} <= rules
    return result


async def test_our_finalizer_goes_and_the_finalizers_of_others_stay(world: KubernetesWorld) -> None:
    add_object(world, "a/held", FINALIZER, "example.com/theirs")
    add_object(world, "b/free")
    released = uninstall.release_finalizers(world, (), Pauses(nothing))
    assert await allowed_requests(world, released, "uninstall") == ["a/held"]
    assert finalizers(world) == {"a/held": ["example.com/theirs"], "b/free": []}


async def test_an_object_that_was_being_deleted_can_go(world: KubernetesWorld) -> None:
    add_object(world, "a/held", FINALIZER)
    world.remove(RETRIEVAL_MODEL, "a", "held")
    assert list(finalizers(world)) == ["a/held"], "its files are not removed yet"
    assert await uninstall.release_finalizers(world, (), Pauses(nothing)) == ["a/held"]
    assert finalizers(world) == {}


async def test_only_the_watched_namespaces_are_touched(world: KubernetesWorld) -> None:
    for key in ("a/one", "b/one", "c/one"):
        add_object(world, key, FINALIZER)
    assert await uninstall.release_finalizers(world, ("a", "b"), Pauses(nothing)) == ["a/one", "b/one"]
    assert finalizers(world)["c/one"] == [FINALIZER]


async def test_an_object_that_somebody_changes_meanwhile_is_tried_again(world: KubernetesWorld) -> None:
    add_object(world, "a/held", FINALIZER)
    world.fail("patch", RETRIEVAL_MODEL, Stale("changed"))
    assert await uninstall.release_finalizers(world, (), Pauses(nothing, nothing)) == ["a/held"]
    assert finalizers(world) == {"a/held": []}


async def test_without_the_definition_there_is_nothing_to_do(world: KubernetesWorld) -> None:
    world.uninstall(RETRIEVAL_MODEL)
    assert await uninstall.release_finalizers(world, (), Pauses()) == []


async def test_the_operator_is_stopped_when_none_of_its_pods_is_left(world: KubernetesWorld) -> None:
    add_operator(world)
    pauses = Pauses(nothing, lambda: world.remove(POD, "ops", "operator-1"))
    await allowed_requests(world, uninstall.stop_operator(world, "ops", "operator", pauses), "uninstallOwn")
    assert world.object(DEPLOYMENT, "ops", "operator")["spec"]["replicas"] == 0
    assert pauses.steps == [], "it waited for the pod"


async def test_an_operator_that_is_gone_is_stopped(world: KubernetesWorld) -> None:
    await uninstall.stop_operator(world, "ops", "operator", Pauses())


async def test_objects_are_deleted_and_waited_for(world: KubernetesWorld) -> None:
    """The operator still runs then, and takes its finalizer off when the files are removed."""
    add_object(world, "a/kept")
    add_object(world, "a/held", FINALIZER)
    free = {"metadata": {"finalizers": []}}
    pauses = Pauses(nothing, lambda: world.change(RETRIEVAL_MODEL, "a", "held", free))
    deleted = uninstall.delete_objects(world, (), pauses)
    assert sorted(await allowed_requests(world, deleted, "uninstall", "uninstallDelete")) == ["a/held", "a/kept"]
    assert finalizers(world) == {}
    assert [name for verb, _, name in world.requests if verb == "delete"] == ["held", "kept"], "each once"


@pytest.mark.parametrize("text", ["operator", "ops/", "/operator", "ops/operator/more"])
def test_what_names_no_deployment_is_refused(text: str) -> None:
    done = CliRunner().invoke(app, ["kubernetes", "release-finalizers", "--stop", text])
    assert done.exit_code == 2
    assert f'found "{text}", expected' in done.output

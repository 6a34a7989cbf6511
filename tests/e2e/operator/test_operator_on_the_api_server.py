"""The operator process against a real API server; what would run for an object is simulated (simulated_operator.py)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from operator_process import DEADLINE_S, NAMESPACE, REAL, SIMULATED, Cluster, Operator, limit_to_rights, until

from retrieval_operator.api.constants import GROUP, VERSION

pytestmark = pytest.mark.e2e

RESIDENT_LIMIT_MB = 150  # the goal for 100 objects


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    cluster = Cluster(kubeconfig)
    yield cluster
    for name in list(cluster.created):
        cluster.delete(name)


@pytest.fixture(scope="module")
def limited(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the operator's rights alone."""
    return limit_to_rights(kubeconfig, tmp_path_factory.mktemp("limited") / "kubeconfig")


@pytest.fixture
def start(cluster: Cluster, limited: Path, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    started: list[Operator] = []

    def start_one(command: Sequence[str] = SIMULATED, **settings: str) -> Operator:
        started.append(Operator(command, limited, tmp_path / f"operator-{len(started)}.log", **settings))
        return started[-1]

    yield start_one
    for operator in started:
        operator.stop()
        print(operator.log.read_text()[-4000:])


@pytest.fixture
def operator(start: Callable[..., Operator]) -> Operator:
    return start()


@pytest.fixture(scope="module")
def restarted(kubeconfig: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """API servers that were started anew. All tests of this module need them, and nobody after it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait(DEADLINE_S)


@pytest.fixture
def restart_api_server(kubeconfig: Path, restarted: list[subprocess.Popen[bytes]]) -> Callable[[], None]:
    """Kill the server and start it again, with the same data."""
    port = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"].rpartition(":")[2]

    def restart() -> None:
        found = [child for child in psutil.Process().children() if f"--secure-port={port}" in child.cmdline()]
        command = found[0].cmdline()
        found[0].kill()
        found[0].wait(DEADLINE_S)
        with (kubeconfig.parent / "restarted.log").open("wb") as log:
            restarted.append(subprocess.Popen(command, stdout=log, stderr=log))

    return restart


def test_an_applied_object_is_promoted_and_kopf_leaves_no_trace_on_it(cluster: Cluster, operator: Operator) -> None:
    cluster.create("feed")
    found = until(lambda: cluster.promoted("feed"), "the first promotion", operator)
    assert found["status"]["champion"]["stack"]
    assert found["status"]["observedGeneration"] == 1
    assert "Promoted" in until(lambda: cluster.reasons("feed"), "events")
    assert not found["metadata"].get("finalizers")
    assert not found["metadata"].get("annotations")
    assert {field["manager"] for field in found["metadata"]["managedFields"] if field.get("subresource")} == {
        "retrieval-operator-status"
    }
    assert operator.page(operator.probe_port, "/healthz")
    metrics = operator.page(operator.metrics_port, "/metrics")
    assert "retrieval_operator_leader 1.0" in metrics
    assert 'retrieval_operator_champion_index_age_seconds{name="feed",namespace="default"}' in metrics
    print(f"resident memory: {operator.resident_mb():.0f} MB")
    assert operator.resident_mb() < RESIDENT_LIMIT_MB
    assert operator.stop() == 0
    assert cluster.holder() == ""
    assert "orbidden" not in operator.log.read_text()


def test_the_real_operator_says_what_is_missing_in_a_cluster_without_the_other_controllers(
    cluster: Cluster, start: Callable[..., Operator]
) -> None:
    operator = start(REAL, RETRIEVAL_OPERATOR_LOG_FORMAT="json")
    cluster.create("waits", training={"nodes": 2})

    def missing() -> str:
        conditions = (cluster.get("waits") or {}).get("status", {}).get("conditions", [])
        found = {condition["type"]: condition for condition in conditions}.get("DependenciesReady", {})
        return str(found["message"]) if found.get("status") == "False" else ""

    message = until(missing, "DependenciesReady is False", operator)
    print(message)
    assert "PyTorchJob" in message
    assert operator.page(operator.probe_port, "/healthz")
    assert operator.stop() == 0
    log = operator.log.read_text()
    assert "orbidden" not in log
    assert "crashed" not in log
    assert all(line.startswith("{") for line in log.splitlines())


def test_an_object_that_a_wider_definition_let_in_says_so_and_harms_nobody(
    cluster: Cluster, operator: Operator
) -> None:
    name = f"retrievalmodels.{GROUP}"
    schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
    narrow = cluster.definitions.read_custom_resource_definition(name, _preload_content=False).json()
    wide = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    before = narrow["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    cluster.definitions.patch_custom_resource_definition(name, [{"op": "replace", "path": schema, "value": wide}])
    try:
        until(lambda: accepts(cluster, "odd", colour="red"), "the wider definition is in force")
        condition = until(lambda: stalled(cluster, "odd"), "it is stalled", operator)
        assert condition["reason"] == "InvalidSpec"
        assert "spec.colour: unknown field" in condition["message"]
        cluster.create("even")
        until(lambda: cluster.promoted("even"), "the other's promotion", operator)
    finally:
        cluster.definitions.patch_custom_resource_definition(name, [{"op": "replace", "path": schema, "value": before}])


def test_an_edit_is_followed_after_the_api_server_was_restarted(
    cluster: Cluster, operator: Operator, restart_api_server: Callable[[], None]
) -> None:
    cluster.create("edited")
    until(lambda: cluster.promoted("edited"), "the first promotion", operator)
    restart_api_server()
    until(lambda: answers(cluster), "the API server answers again")
    cluster.patch("edited", {"spec": {"data": {"revision": "2"}}})
    assert until(lambda: cluster.promoted("edited"), "the second promotion", operator)["metadata"]["generation"] == 2
    assert operator.page(operator.probe_port, "/healthz")


def test_an_operator_that_cannot_reach_its_cluster_waits_and_ends_in_good_order(limited: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(limited.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "unreachable").write_text(yaml.safe_dump(document))
    operator = Operator(REAL, tmp_path / "unreachable", tmp_path / "operator.log", RETRIEVAL_OPERATOR_LOG_FORMAT="json")
    try:
        until(lambda: "the cluster is not ready" in operator.log.read_text(), "it waits", operator)
    finally:
        code = operator.stop()
    assert code == 0
    assert all(line.startswith("{") for line in operator.log.read_text().splitlines())


def test_a_second_operator_waits_until_the_first_hands_the_lease_on(
    cluster: Cluster, start: Callable[..., Operator]
) -> None:
    first = start()
    holder = until(cluster.holder, "the first has the lease", first)
    second = start()
    until(lambda: "waiting for the lease" in second.log.read_text(), "the second waits", second)
    assert "retrieval_operator_leader 0.0" in second.page(second.metrics_port, "/metrics")
    assert first.stop() == 0
    until(lambda: cluster.holder() not in ("", holder), "the second has the lease", second)
    cluster.create("later")
    until(lambda: cluster.promoted("later"), "the second acts", second)


def test_a_deleted_object_is_forgotten_and_others_go_on(cluster: Cluster, operator: Operator) -> None:
    cluster.create("short-lived")
    until(lambda: cluster.promoted("short-lived"), "the first promotion", operator)
    cluster.delete("short-lived")
    until(
        lambda: 'name="short-lived"' not in operator.page(operator.metrics_port, "/metrics"),
        "it is forgotten",
        operator,
    )
    cluster.create("another")
    until(lambda: cluster.promoted("another"), "the other's promotion", operator)


def test_an_operator_of_some_namespaces_leaves_the_others_alone(
    cluster: Cluster, start: Callable[..., Operator]
) -> None:
    elsewhere = "elsewhere"
    cluster.core.create_namespace({"metadata": {"name": elsewhere}})
    operator = start(RETRIEVAL_OPERATOR_NAMESPACES=f'["{NAMESPACE}"]')
    cluster.create("theirs", namespace=elsewhere)
    cluster.create("ours")
    until(lambda: cluster.promoted("ours"), "the promotion of ours", operator)
    theirs = cluster.objects.get_namespaced_custom_object(GROUP, VERSION, elsewhere, "retrievalmodels", "theirs")
    assert "status" not in theirs


def test_a_definition_that_is_installed_later_ends_the_process_in_good_order(
    cluster: Cluster, operator: Operator
) -> None:
    until(cluster.holder, "the operator acts", operator)
    names = {"plural": "inferenceservices", "singular": "inferenceservice", "kind": "InferenceService"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "inferenceservices.serving.kserve.io"},
        "spec": {"group": "serving.kserve.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    cluster.definitions.create_custom_resource_definition(definition)
    try:
        until(lambda: operator.process.poll() is not None, "the process ends")
        assert operator.process.returncode == 0
        assert cluster.holder() == ""
    finally:
        cluster.definitions.delete_custom_resource_definition("inferenceservices.serving.kserve.io")


def accepts(cluster: Cluster, name: str, **spec: Any) -> bool:
    """Whether the server keeps a field that no definition of ours has."""
    try:
        cluster.create(name, **spec)
    except ApiException as error:
        if error.status == 409:
            cluster.delete(name)
        return False
    found = cluster.get(name)
    assert found is not None
    if not spec.keys() <= found["spec"].keys():
        cluster.delete(name)
        return False
    return True


def stalled(cluster: Cluster, name: str) -> Any:
    conditions = (cluster.get(name) or {}).get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "Stalled"), None)


def answers(cluster: Cluster) -> bool:
    try:
        cluster.get("edited")
    except Exception:  # every way in which a server can be away
        return False
    return True

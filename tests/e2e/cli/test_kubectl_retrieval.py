"""`kubectl retrieval` through the real kubectl, at a real API server, with the rights of the person who types it.

The operator is a process; what would run for an object is simulated (simulated_operator.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from native_cluster.binaries import ready_programs
from native_cluster.layout import NotRun
from operator_process import NAMESPACE, SIMULATED, Cluster, Operator, install_definition, limit_to_rights, until

from retrieval_operator.api.constants import GROUP

pytestmark = pytest.mark.e2e

# What pip makes of pyproject's entry (tests/unit/cli/test_cli_cluster.py compares it).
PROGRAM = f"#!{sys.executable}\nfrom retrieval_operator.cli.cluster import main\nmain()\n"
READING = ["get", "list"]
Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def kubeconfig(own_api_server: Path) -> Path:
    install_definition(own_api_server)
    return own_api_server


@pytest.fixture(scope="module")
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    home = tmp_path_factory.mktemp("operator")
    running = Operator(SIMULATED, limit_to_rights(kubeconfig, home / "kubeconfig"), home / "operator.log")
    yield running
    running.stop()
    print(running.log.read_text()[-4000:])


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    cluster = Cluster(kubeconfig)
    yield cluster
    for name in list(cluster.created):
        cluster.delete(name)


@pytest.fixture(scope="module")
def person(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], Path]:
    """person(name, verbs): a kubeconfig with these rights on RetrievalModels of the namespace, and no other right."""
    home = tmp_path_factory.mktemp("people")

    def make(name: str, verbs: list[str]) -> Path:
        with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
            core, rights = client.CoreV1Api(connection), client.RbacAuthorizationV1Api(connection)
            metadata = {"name": name}
            core.create_namespaced_service_account(NAMESPACE, {"metadata": metadata})
            rule = {"apiGroups": [GROUP], "resources": ["retrievalmodels"], "verbs": verbs}
            rights.create_namespaced_role(NAMESPACE, {"metadata": metadata, "rules": [rule]})
            account = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
            binding = {"metadata": metadata, "subjects": [account], "roleRef": role}
            rights.create_namespaced_role_binding(NAMESPACE, binding)
            token = core.create_namespaced_service_account_token(name, NAMESPACE, {"spec": {}}).status.token
        document = yaml.safe_load(kubeconfig.read_text())
        document["users"].append({"name": name, "user": {"token": token}})
        cluster_name = document["contexts"][0]["context"]["cluster"]
        document["contexts"].append({"name": name, "context": {"cluster": cluster_name, "user": name}})
        path = home / name
        path.write_text(yaml.safe_dump(document))
        return path

    return make


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """Run `kubectl retrieval ...` with all rights, or with another `kubeconfig` in the environment."""
    try:
        binaries = ready_programs("kubectl")
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")
    plugins = tmp_path_factory.mktemp("plugins")
    program = plugins / "kubectl-retrieval"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    path = os.pathsep.join([str(plugins), os.environ["PATH"]])

    def run(*arguments: str, as_person: Path = kubeconfig) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binaries / "kubectl"), "retrieval", *arguments],
            env={**os.environ, "PATH": path, "KUBECONFIG": str(as_person)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def awaiting(cluster: Cluster, name: str) -> Any:
    """The candidate that awaits approval."""
    candidate = (cluster.get(name) or {}).get("status", {}).get("candidate") or {}
    return candidate if candidate.get("step") == "AwaitingApproval" else None


def test_a_person_approves_rejects_retries_and_rolls_back(
    cluster: Cluster, operator: Operator, kubectl: Kubectl
) -> None:
    manual = {"mode": "Manual", "gates": [{"min": "0.1"}]}
    cluster.create("feed", promotion=manual)
    until(lambda: awaiting(cluster, "feed"), "the first candidate awaits approval", operator)

    tree = said(kubectl("status", "feed"))
    assert "now   Approval" in tree
    assert f"a person approves or rejects stack {awaiting(cluster, 'feed')['stack']}" in tree
    assert "is approved" in said(kubectl("approve", "feed", "--namespace", NAMESPACE))
    first = until(lambda: cluster.promoted("feed"), "the first promotion", operator)["status"]["champion"]["stack"]

    cluster.patch("feed", {"spec": {"data": {"revision": "2"}}})
    until(lambda: awaiting(cluster, "feed"), "the second candidate awaits approval", operator)
    said(kubectl("reject", "feed"))
    until(lambda: "Ended revision" in said(kubectl("status", "feed")), "it is rejected", operator)
    assert "RejectedByReviewer" in said(kubectl("status", "feed"))
    said(kubectl("retry", "feed"))
    until(lambda: awaiting(cluster, "feed"), "it awaits approval again", operator)
    said(kubectl("approve", "feed"))
    second = until(lambda: cluster.promoted("feed"), "the second promotion", operator)["status"]["champion"]["stack"]
    assert second != first

    assert f"traffic goes back from {second} to {first}" in said(kubectl("rollback", "feed"))
    until(lambda: cluster.get("feed")["status"]["champion"]["stack"] == first, "the rollback", operator)
    assert "RolledBack" in said(kubectl("describe", "feed"))
    found = json.loads(said(kubectl("status", "feed", "-o", "json")))
    assert found["status"]["champion"]["stack"] == first


def test_a_retraining_is_asked_for_once_per_request(cluster: Cluster, operator: Operator, kubectl: Kubectl) -> None:
    cluster.create("again")
    before = until(lambda: cluster.promoted("again"), "the first promotion", operator)["status"]["champion"]
    assert "training number 1 of this spec" in said(kubectl("retrain", "again"))

    def trained_again() -> bool:
        champion = cluster.get("again")["status"]["champion"]
        return bool(champion["revision"] != before["revision"])

    until(trained_again, "the retraining is promoted", operator)


def test_the_right_to_see_objects_shows_them_and_says_what_is_hidden(
    cluster: Cluster, operator: Operator, kubectl: Kubectl, person: Callable[[str, list[str]], Path]
) -> None:
    cluster.create("seen", promotion={"mode": "Manual", "gates": [{"min": "0.1"}]})
    until(lambda: awaiting(cluster, "seen"), "it awaits approval", operator)
    viewer = person("viewer", READING)
    for arguments in (["status", "seen"], ["describe", "seen"]):
        shown = said(kubectl(*arguments, "--kubeconfig", str(viewer), "--context", "viewer"))
        assert 'list pods: pods is forbidden: User "system:serviceaccount:default:viewer"' in shown
        assert "AwaitingApproval" in shown
    refused = kubectl("approve", "seen", "--context", "viewer", as_person=viewer)
    assert refused.returncode == 2
    assert "is forbidden" in refused.stderr
    assert "Traceback" not in refused.stderr
    everywhere = kubectl("status", "--all-namespaces", "--context", "viewer", as_person=viewer)
    assert (everywhere.returncode, "is forbidden" in everywhere.stderr) == (2, True)

    reviewer = person("reviewer", [*READING, "patch"])
    said(kubectl("approve", "seen", "--context", "reviewer", as_person=reviewer))
    until(lambda: cluster.promoted("seen"), "the promotion", operator)
    managers = {field["manager"] for field in cluster.get("seen")["metadata"]["managedFields"]}
    assert "kubectl-retrieval" in managers


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "nobody"], 3, "default/nobody does not exist"),
        (["status", "--namespace", "empty"], 3, "there is no RetrievalModel in namespace empty"),
        (["approve", "nobody"], 3, "default/nobody does not exist"),
        (["status", "--context", "nowhere"], 2, "found no way to reach a cluster"),
        (["status", "--kubeconfig", "/no/such/file"], 2, "found no way to reach a cluster"),
    ],
)
def test_what_is_not_there_is_a_sentence_and_an_exit_code(
    kubectl: Kubectl, arguments: list[str], code: int, words: str
) -> None:
    done = kubectl(*arguments)
    assert (done.returncode, words in done.stderr) == (code, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_namespace_of_the_context_is_where_one_looks(kubectl: Kubectl, kubeconfig: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    document["contexts"][0]["context"]["namespace"] = "kube-public"
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(yaml.safe_dump(document))
    assert "in namespace kube-public" in kubectl("status", as_person=elsewhere).stderr


def test_an_api_server_that_is_away_is_a_sentence(kubectl: Kubectl, kubeconfig: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    away = tmp_path / "kubeconfig"
    away.write_text(yaml.safe_dump(document))
    done = kubectl("status", as_person=away)
    assert (done.returncode, "the API server does not answer" in done.stderr) == (1, True), done.stderr

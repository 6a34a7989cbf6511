"""The chart on a real API server: what its roles allow and refuse, and what is left when it goes.

No controllers run here, so nothing starts: what the hook's Job would run is started by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from operator_process import is_served, until

from retrieval_operator.adapters.kubernetes import kinds, permissions
from retrieval_operator.adapters.kubernetes.kinds import Kind
from retrieval_operator.api.constants import FINALIZER, GROUP, VERSION

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "retrieval-operator"
# The chart before it had more than the definition (commit 3b46f51), as `helm package --version 0.0.1` made it.
OLDER = Path(__file__).parent / "retrieval-operator-0.0.1.tgz"
RELEASE = "retrieval-operator"
ACCOUNT = f"system:serviceaccount:ops:{RELEASE}"
UNINSTALLER = f"{ACCOUNT}-uninstall"
# What the operator has no business with, beside every kind that it knows.
FOREIGN = (
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "namespaces", "Namespace", namespaced=False),
    Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
)
EVERY_VERB = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


@pytest.fixture
def helm_here(helm, own_api_server: Path):
    """helm on this server; a failure ends the test with its words, and leaves the next one no release."""

    def run(*arguments: str) -> str:
        done = helm(*arguments, "--namespace", "ops", "--kubeconfig", str(own_api_server))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    yield run
    run("uninstall", RELEASE, "--no-hooks", "--ignore-not-found")


@pytest.fixture
def connection(own_api_server: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(config_file=str(own_api_server)) as connected:
        yield connected


@pytest.fixture
def namespaces(connection: client.ApiClient) -> client.CoreV1Api:
    core = client.CoreV1Api(connection)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in ("ops", "feed", "other"):
        make_namespace(core, {"metadata": {"name": name, "labels": restricted}})
    return core


def make_namespace(core: client.CoreV1Api, document: dict[str, Any]) -> None:
    """With the account that pods need to be admitted, which a controller would make. One that is there stays."""
    name = document["metadata"]["name"]
    for make in (
        lambda: core.create_namespace(document),
        lambda: core.create_namespaced_service_account(name, {"metadata": {"name": "default"}}),
    ):
        try:
            make()
        except ApiException as error:
            assert error.status == 409, error.body


@pytest.fixture
def installed(helm_here, namespaces):
    """Installs the chart with these arguments."""

    def install(*arguments: str) -> None:
        helm_here("install", RELEASE, str(CHART), *arguments)

    return install


def may(connection: client.ApiClient, user: str, verb: str, kind: Kind, namespace: str, subresource: str = "") -> bool:
    """Whether the server's authorizer lets the user do that."""
    groups = ["system:serviceaccounts", "system:serviceaccounts:ops", "system:authenticated"]
    attributes = {
        "verb": verb,
        "group": kind.group,
        "version": kind.version,
        "resource": kind.plural,
        "subresource": subresource,
        "namespace": namespace if kind.namespaced or kind == kinds.NAMESPACE else "",  # as the server asks itself
    }
    review = {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}}
    return bool(client.AuthorizationV1Api(connection).create_subject_access_review(review).status.allowed)


def allowed(connection: client.ApiClient, user: str, namespace: str) -> set[tuple[str, str, str]]:
    """(kind, subresource, verb) of all that the user may do there."""
    subresources = {(kind, "") for kind in (*kinds.KINDS, *FOREIGN)} | {(kinds.RETRIEVAL_MODEL, "status")}
    return {
        (kind.kind, subresource, verb)
        for kind, subresource in subresources
        for verb in EVERY_VERB
        if may(connection, user, verb, kind, namespace, subresource)
    }


def rows(*scopes: str) -> set[tuple[str, str, str]]:
    """The same of the tables in the code."""
    return {
        (row.kind.kind, row.subresource, verb)
        for scope in scopes
        for row in permissions.SCOPES[scope]
        for verb in row.verbs
    }


def test_the_operator_may_do_what_the_code_lists_and_nothing_else(installed, connection) -> None:
    installed()
    assert allowed(connection, ACCOUNT, "feed") == rows("watched", "cluster")
    assert allowed(connection, ACCOUNT, "ops") == rows("watched", "cluster", "own")


def test_in_namespaced_mode_it_may_do_nothing_elsewhere(installed, connection) -> None:
    installed("--set", "watch.namespaces={feed}")
    assert allowed(connection, ACCOUNT, "feed") == rows("watched", "cluster")
    assert allowed(connection, ACCOUNT, "ops") == rows("cluster", "own")
    assert allowed(connection, ACCOUNT, "other") == rows("cluster")


def test_its_pods_are_admitted_where_restricted_is_enforced(installed, namespaces, connection) -> None:
    installed()
    deployment = client.AppsV1Api(connection).read_namespaced_deployment(RELEASE, "ops", _preload_content=False)
    template = yaml.safe_load(deployment.data)["spec"]["template"]
    pod = {"metadata": {"name": "as-deployed", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    namespaces.create_namespaced_pod("ops", pod, dry_run="All")
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(ApiException, match="violates PodSecurity"):
        namespaces.create_namespaced_pod("ops", pod, dry_run="All")


MANIFEST = yaml.safe_load((ROOT / "examples" / "kubernetes" / "retrievalmodel.yaml").read_text())


def test_the_examples_are_accepted(installed, namespaces, connection) -> None:
    """In namespaces that enforce restricted, pods included; the definition is the chart's."""
    installed()
    make_namespace(namespaces, {"metadata": {"name": "kubeflow"}})  # the training-operator's, there before our example
    api = DynamicClient(connection)
    for path in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            resource = api.resources.get(api_version=document["apiVersion"], kind=document["kind"])
            if document["kind"] == "Namespace":
                make_namespace(namespaces, document)
                continue
            resource.create(body=document, namespace=document["metadata"]["namespace"], dry_run="All")
            if "template" in document.get("spec", {}):
                template = document["spec"]["template"]
                pod = {"metadata": {**template.get("metadata", {}), "name": "as-made"}, "spec": template["spec"]}
                namespaces.create_namespaced_pod(document["metadata"]["namespace"], pod, dry_run="All")


def make_object(objects: client.CustomObjectsApi, name: str, finalizers: list[str]) -> dict[str, Any]:
    """Once its kind is served, which a definition that helm has just made is not yet."""
    until(lambda: is_served(objects), "RetrievalModels are served")
    manifest = {**MANIFEST, "metadata": {"name": name, "namespace": "feed", "finalizers": finalizers}}
    made: dict[str, Any] = objects.create_namespaced_custom_object(GROUP, VERSION, "feed", "retrievalmodels", manifest)
    return made


def read_object(objects: client.CustomObjectsApi, name: str) -> dict[str, Any]:
    read: dict[str, Any] = objects.get_namespaced_custom_object(GROUP, VERSION, "feed", "retrievalmodels", name)
    return read


def test_objects_made_under_an_older_chart_outlive_the_upgrade(helm_here, namespaces, connection) -> None:
    helm_here("install", RELEASE, str(OLDER))
    objects = client.CustomObjectsApi(connection)
    before = make_object(objects, "older", [])

    helm_here("upgrade", RELEASE, str(CHART))
    client.AppsV1Api(connection).read_namespaced_deployment(RELEASE, "ops")  # raises when there is none
    after = read_object(objects, "older")
    for field in ("uid", "generation"):
        assert after["metadata"][field] == before["metadata"][field]
    assert after["spec"] == before["spec"]

    objects.delete_namespaced_custom_object(GROUP, VERSION, "feed", "retrievalmodels", "older")


def test_the_hook_frees_objects_and_they_outlive_the_chart(
    helm_here, namespaces, connection, own_api_server: Path
) -> None:
    helm_here("install", RELEASE, str(CHART))
    objects = client.CustomObjectsApi(connection)
    uid = make_object(objects, "kept", [])["metadata"]["uid"]
    make_object(objects, "held", [FINALIZER, "example.com/theirs"])
    objects.delete_namespaced_custom_object(GROUP, VERSION, "feed", "retrievalmodels", "held")

    done = release_finalizers(own_api_server, f"--stop=ops/{RELEASE}")
    assert done.returncode == 0, done.stderr
    assert "the operator ops/retrieval-operator is stopped\nfeed/held has no finalizer of the operator" in done.stdout
    deployment = client.AppsV1Api(connection).read_namespaced_deployment(RELEASE, "ops")
    assert deployment.spec.replicas == 0

    helm_here("uninstall", RELEASE, "--no-hooks")
    assert read_object(objects, "kept")["metadata"]["uid"] == uid
    assert read_object(objects, "held")["metadata"]["finalizers"] == ["example.com/theirs"]

    helm_here("install", RELEASE, str(CHART))  # the definition that stayed is taken over again
    objects.delete_namespaced_custom_object(GROUP, VERSION, "feed", "retrievalmodels", "kept")


def test_the_hook_may_do_what_it_does_and_nothing_else(helm_here, namespaces, connection, own_api_server: Path) -> None:
    """Helm makes a hook's objects when it runs it; here its template is applied as it is."""
    rendered = helm_here(
        "template", RELEASE, str(CHART), "--show-only", "templates/uninstall.yaml", "--kube-version", "1.30.0"
    )
    rbac, core = client.RbacAuthorizationV1Api(connection), client.CoreV1Api(connection)
    make = {
        "ServiceAccount": lambda body: core.create_namespaced_service_account("ops", body),
        "ClusterRole": rbac.create_cluster_role,
        "ClusterRoleBinding": rbac.create_cluster_role_binding,
        "Role": lambda body: rbac.create_namespaced_role("ops", body),
        "RoleBinding": lambda body: rbac.create_namespaced_role_binding("ops", body),
        "Job": lambda body: client.BatchV1Api(connection).create_namespaced_job("ops", body, dry_run="All"),
    }
    for document in yaml.safe_load_all(rendered):
        make[document["kind"]](document)
    assert allowed(connection, UNINSTALLER, "feed") == rows("uninstall")
    assert allowed(connection, UNINSTALLER, "ops") == rows("uninstall", "uninstallOwn")


def release_finalizers(kubeconfig: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "retrieval-operator"
    command = [str(program), "kubernetes", "release-finalizers", *arguments]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

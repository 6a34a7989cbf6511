"""The cluster for tests is a real one: what our own stories stand on works before they start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from native_cluster.images import busybox, pack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAMESPACE = "cluster-smoke"
WAIT_S = 180
HTTPD = "trap exit TERM; httpd -f -p 8080"  # a first process without a handler would ignore TERM for half a minute

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def kubectl(cluster: Any) -> Iterator[Kubectl]:
    """Run kubectl in a namespace of this module, with a document on its input where one is given."""

    def run(*arguments: str, document: Any = None, fails: bool = False) -> str:
        result = subprocess.run(
            ["kubectl", f"--namespace={NAMESPACE}", *arguments],
            input="" if document is None else yaml.safe_dump(document),
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S + 30,
            check=False,
        )
        assert (result.returncode != 0) is fails, result.stderr + result.stdout
        return result.stderr if fails else result.stdout

    run("create", "namespace", NAMESPACE)
    yield run
    run("delete", "namespace", NAMESPACE, f"--timeout={WAIT_S}s")


def test_a_deployment_becomes_available_and_answers_by_the_name_of_its_service(cluster: Any, kubectl: Kubectl) -> None:
    serve = f"mkdir /tmp/www; echo it-is-me > /tmp/www/index.html; {HTTPD} -h /tmp/www & wait"
    kubectl("create", "deployment", "web", f"--image={cluster.busybox}", "--", "sh", "-c", serve)
    kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
    kubectl("wait", "--for=condition=Available", "deployment/web", f"--timeout={WAIT_S}s")
    ask = f"wget -qO- http://web.{NAMESPACE} | grep it-is-me"
    kubectl("create", "job", "ask", f"--image={cluster.busybox}", "--", *retrying(ask))
    kubectl("wait", "--for=condition=Complete", "job/ask", f"--timeout={WAIT_S}s")
    assert "it-is-me" in kubectl("exec", "deployment/web", "--", "wget", "-qO-", "http://web")


def retrying(command: str) -> list[str]:
    """A Service's rules and its name follow the Deployment's readiness by a moment."""
    return ["sh", "-c", f"for try in $(seq 30); do {command} && exit 0; sleep 1; done; exit 1"]


def test_a_pytorchjob_whose_worker_finds_its_master_succeeds(cluster: Any, kubectl: Kubectl) -> None:
    listen = 'test "$(nc -l -p $MASTER_PORT)" = "rank 1 of 2"'  # nc ends when a worker has spoken
    speak = 'until echo "rank $RANK of $WORLD_SIZE" | nc $MASTER_ADDR $MASTER_PORT; do sleep 1; done; sleep 1'

    def replica(command: str) -> dict[str, Any]:
        container = {"name": "pytorch", "image": cluster.busybox, "command": ["sh", "-c", command]}
        return {"replicas": 1, "restartPolicy": "OnFailure", "template": {"spec": {"containers": [container]}}}

    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "tiny"},
        "spec": {"pytorchReplicaSpecs": {"Master": replica(listen), "Worker": replica(speak)}},
    }
    kubectl("create", "--filename=-", document=job)
    kubectl("wait", "--for=condition=Succeeded", "pytorchjob/tiny", f"--timeout={WAIT_S}s")


def test_a_pytorchjob_with_two_masters_is_refused_by_the_real_webhook(cluster: Any, kubectl: Kubectl) -> None:
    container = {"name": "pytorch", "image": cluster.busybox}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "two-heads"},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 2, "template": {"spec": {"containers": [container]}}}}},
    }
    assert "must be 1" in kubectl("create", "--filename=-", document=job, fails=True)


def inference_service(name: str, image: str) -> dict[str, Any]:
    serve = ["sh", "-c", f"{HTTPD} -h /tmp & wait"]
    container = {"name": "kserve-container", "image": image, "command": serve, "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"minReplicas": 1, "containers": [container]}},
    }


def test_an_inference_service_is_accepted_and_served_and_a_bad_one_is_refused(cluster: Any, kubectl: Kubectl) -> None:
    kubectl("create", "--filename=-", document=inference_service("tiny", cluster.busybox))
    kubectl("wait", "--for=condition=Ready", "inferenceservice/tiny", f"--timeout={WAIT_S}s")
    kubectl("get", "deployment/tiny-predictor")  # Standard mode: a plain Deployment
    refused = kubectl("create", "--filename=-", document=inference_service("Bad_Name", cluster.busybox), fails=True)
    assert "denied the request" in refused or "Invalid value" in refused


def test_a_privileged_pod_is_refused_where_the_namespace_is_restricted(cluster: Any, kubectl: Kubectl) -> None:
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    refused = kubectl("run", "root", f"--image={cluster.busybox}", "--privileged", fails=True)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce-")
    assert 'violates PodSecurity "restricted' in refused


def test_the_owner_of_an_object_must_be_ones_own_to_change(cluster: Any, kubectl: Kubectl) -> None:
    """OwnerReferencesPermissionEnforcement, which many clusters have and a bare API server has not."""
    kubectl("create", "serviceaccount", "limited")
    kubectl("create", "role", "limited", "--verb=create", "--resource=configmaps")
    kubectl("create", "rolebinding", "limited", "--role=limited", f"--serviceaccount={NAMESPACE}:limited")
    kubectl("create", "configmap", "owner")
    uid = kubectl("get", "configmap", "owner", "--output=jsonpath={.metadata.uid}")
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": True}
    owned = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]}}
    limited = f"--as=system:serviceaccount:{NAMESPACE}:limited"
    refused = kubectl("create", limited, "--filename=-", document=owned, fails=True)
    assert "cannot set blockOwnerDeletion" in refused


def test_an_image_that_was_loaded_from_an_archive_runs(cluster: Any, kubectl: Kubectl, tmp_path: Path) -> None:
    if cluster.binaries is None:
        pytest.skip("not run: the named cluster gets its images in a way of its own")
    shell = shutil.which("busybox")
    assert shell
    pack(busybox("localhost/native-cluster/loaded:1", Path(shell)), tmp_path / "loaded.tar")
    subprocess.run(
        [sys.executable, "-m", "native_cluster", "load-image", str(tmp_path / "loaded.tar")],
        cwd=Path(__file__).parent,
        check=True,
        timeout=WAIT_S,
    )
    image = ("--image=localhost/native-cluster/loaded:1", "--image-pull-policy=Never")
    kubectl("run", "loaded", *image, "--restart=Never", "--", "true")
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/loaded", f"--timeout={WAIT_S}s")

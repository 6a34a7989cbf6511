"""A cluster in which a life can be lived: our images, the operator by its chart, MLflow, and a namespace with storage.

Everything is installed as docs/operations.md says, from the manifests in examples/kubernetes; what differs is written
here: image names, and volumes, for the cluster of tests has no provisioner.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lives import images
from native_cluster.layout import Layout, default_state

Object = dict[str, Any]
Kubectl = Callable[..., str]

EXAMPLES = images.ROOT / "examples" / "kubernetes"
CHART = images.ROOT / "charts" / "retrieval-operator"
OPERATOR, MLFLOW, FEED = "retrieval-operator", "mlflow", "feed"
IMAGE_TAG = "RETRIEVAL_E2E_IMAGE_TAG"
USER = 10001  # of our images
WAIT_S = 300


@pytest.fixture(scope="session")
def kubectl(cluster: Any) -> Kubectl:
    """Runs kubectl with a document, or several, on its input where there are some; a failure ends the test."""

    def run(*arguments: str, documents: list[Object] | None = None, timeout_s: float = WAIT_S) -> str:
        result = subprocess.run(
            ["kubectl", *arguments],
            input=yaml.safe_dump_all(documents) if documents else "",
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}{result.stdout}"
        return result.stdout

    return run


@pytest.fixture(scope="session")
def tag(cluster: Any) -> str:
    """Of our images, which the cluster has; the first time this builds them. RETRIEVAL_E2E_IMAGE_TAG: it has these."""
    if named := os.environ.get(IMAGE_TAG):
        return named
    if cluster.binaries is None:
        pytest.skip(f"not run: {IMAGE_TAG} does not say which of its images the named cluster is to use")
    if lacking := images.missing():
        pytest.skip(f"not run: {lacking}")
    return images.provide(Layout.existing(default_state()))


@pytest.fixture(scope="session")
def volume(cluster: Any, kubectl: Kubectl) -> Iterator[Callable[[str, str], Path]]:
    """Makes a volume for a claim that is still to come, as an administrator would: writable for our user."""
    with tempfile.TemporaryDirectory(prefix="retrieval-volumes-", dir="/var/tmp") as home:
        made: list[str] = []

        def make(namespace: str, claim: str) -> Path:
            path = Path(home) / namespace / claim
            path.mkdir(parents=True)
            os.chown(path, USER, USER)
            Path(home).chmod(0o755)
            made.append(f"{namespace}-{claim}")
            kubectl("apply", "--filename=-", documents=[_persistent_volume(made[-1], namespace, claim, path)])
            return path

        yield make
        for name in made:
            kubectl("delete", "persistentvolume", name, "--wait=false")


def _persistent_volume(name: str, namespace: str, claim: str, path: Path) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(path), "type": "Directory"},
        },
    }


@pytest.fixture(scope="session")
def mlflow(kubectl: Kubectl, tag: str, volume: Any) -> Iterator[str]:
    """The address of the tracking server of examples/kubernetes/mlflow.yaml."""
    volume(MLFLOW, "mlflow")
    kubectl("apply", "--filename=-", documents=example("mlflow.yaml", tag))
    kubectl("--namespace", MLFLOW, "rollout", "status", "deployment/mlflow", f"--timeout={WAIT_S}s")
    yield f"http://mlflow.{MLFLOW}:5000"
    kubectl("delete", "namespace", MLFLOW)


@pytest.fixture(scope="session")
def operator(cluster: Any, kubectl: Kubectl, helm: Any, tag: str, mlflow: str) -> Iterator[None]:
    """The chart, installed in a namespace of its own and uninstalled at the end."""
    place = ("--namespace", OPERATOR)

    def run(*arguments: str) -> None:
        done = helm(*arguments, *place, env=cluster.environment)
        assert done.returncode == 0, done.stdout + done.stderr

    settings = {
        "images.prefix": images.PREFIX,
        "images.tag": tag,
        "mlflow.connections.default.uri": mlflow,
    }
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    run("install", OPERATOR, str(CHART), "--create-namespace", *flags)
    kubectl(*place, "rollout", "status", f"deployment/{OPERATOR}", f"--timeout={WAIT_S}s")
    yield
    run("uninstall", OPERATOR)
    kubectl("delete", "namespace", OPERATOR)


@pytest.fixture(scope="session")
def feed(kubectl: Kubectl, operator: None, tag: str, volume: Any) -> Iterator[Path]:
    """The namespace of examples/kubernetes/storage.yaml, in which PodSecurity "restricted" is enforced.

    The directory behind its claim, with the generated dataset. What happened there is kept in the cluster's logs.
    """
    path = volume(FEED, "retrieval")
    kubectl("apply", "--filename=-", documents=example("storage.yaml", tag))
    place = ("--namespace", FEED)
    kubectl(*place, "wait", "--for=condition=Complete", "job/generate-day-28", f"--timeout={WAIT_S}s")
    yield path
    keep_evidence(kubectl, Layout.existing(default_state()).logs / "lives")
    kubectl("delete", "namespace", FEED)


def example(name: str, tag: str) -> list[Object]:
    """The documents of a manifest in examples/kubernetes, with the images of this working tree."""
    text = (EXAMPLES / name).read_text()
    for image in images.COMPONENTS.values():
        text = text.replace(f"image: {image}:0.1.0", f"image: {images.PREFIX}{image}:{tag}")
    return list(yaml.safe_load_all(text))


def keep_evidence(kubectl: Kubectl, directory: Path) -> None:
    """The objects, their events and every log that the cluster still has."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    looks = {
        "objects.yaml": ("get", "retrievalmodels,jobs,pytorchjobs,inferenceservices,services,pods", "--output=yaml"),
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
    }
    for name, arguments in looks.items():
        (directory / name).write_text(kubectl("--namespace", FEED, *arguments))
    for namespace in (FEED, OPERATOR, MLFLOW):
        for pod in kubectl("--namespace", namespace, "get", "pods", "--output=name").split():
            log = kubectl("--namespace", namespace, "logs", pod, "--all-containers", "--ignore-errors")
            (directory / f"{namespace}-{pod.removeprefix('pod/')}.log").write_text(log)

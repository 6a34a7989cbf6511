"""The manifests of workloads, as the golden files have them, on a real API server: schema, validation, PodSecurity."""

from __future__ import annotations

import copy
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from native_cluster.binaries import Binaries
from native_cluster.layout import default_cache

from retrieval_operator.adapters.kubernetes.cache import Cache, WriteThrough
from retrieval_operator.adapters.kubernetes.client import connected
from retrieval_operator.adapters.kubernetes.kinds import (
    JOB,
    POD,
    PYTORCH_JOB,
    kind_of,
)
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads, stop_patch
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.domain import commands

pytestmark = pytest.mark.e2e

GOLDEN = Path(__file__).parents[2] / "golden" / "kubernetes" / "workloads"
NAMESPACE = "search"  # of the golden manifests
PYTORCH_JOB_DEFINITION = "base/crds/kubeflow.org_pytorchjobs.yaml"
DEADLINE_S = 60
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DRY_RUN = "?dryRun=All&fieldValidation=Strict"

Request = Callable[..., httpx.Response]
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(GOLDEN.glob("*.yaml"))}
JOBS = [name for name, manifest in MANIFESTS.items() if manifest["kind"] == JOB.kind]
PYTORCH_JOBS = [name for name, manifest in MANIFESTS.items() if manifest["kind"] == PYTORCH_JOB.kind]


@pytest.fixture(scope="module")
def request_to(api_server: Path) -> Iterator[Request]:
    """request_to(method, path, body) is the API server's answer, about a namespace that is restricted."""
    document = yaml.safe_load(api_server.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
    headers = {"Authorization": f"Bearer {user['token']}"}
    with httpx.Client(base_url=cluster["server"], verify=trust, headers=headers, trust_env=False) as connection:

        def send(method: str, path: str, body: Any, content_type: str = "application/json") -> httpx.Response:
            return connection.request(method, path, content=json.dumps(body), headers={"Content-Type": content_type})

        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        of_the_cluster = {
            "/api/v1/namespaces": {"metadata": {"name": NAMESPACE, "labels": labels}},
            "/apis/scheduling.k8s.io/v1/priorityclasses": {"metadata": {"name": "batch"}, "value": 10},
        }
        for path, body in of_the_cluster.items():
            send("POST", path, body).raise_for_status()
        for account in ("default", "trainer"):  # no controller runs here that would make the first
            body = {"metadata": {"name": account}}
            send("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", body).raise_for_status()
        yield send


@pytest.fixture(scope="module")
def pytorch_jobs(request_to: Request) -> None:
    """The training-operator's own definition is installed."""
    modules = Path(os.environ.get("GOMODCACHE", Path.home() / "go" / "pkg" / "mod"))
    places = [Binaries(default_cache()).file("training-operator", "manifests")]
    places += sorted(modules.glob("github.com/kubeflow/training-operator@*/manifests"))
    found = [place / PYTORCH_JOB_DEFINITION for place in places if (place / PYTORCH_JOB_DEFINITION).is_file()]
    if not found:
        pytest.skip("not run: the training-operator's definitions are not here (make cluster-up brings them)")
    definition = yaml.safe_load(found[0].read_text())
    request_to("POST", DEFINITIONS, definition).raise_for_status()
    deadline = time.monotonic() + DEADLINE_S
    while not request_to("GET", PYTORCH_JOB.path(NAMESPACE), None).is_success:  # 404, then 429, for a moment
        assert time.monotonic() < deadline, f"PyTorchJobs are not served within {DEADLINE_S} s"
        time.sleep(0.1)


def created(request_to: Request, manifest: dict[str, Any], query: str = "") -> dict[str, Any]:
    """What the API server stored, without having warned: PodSecurity warns about templates that it would refuse."""
    answer = request_to("POST", kind_of(manifest).path(NAMESPACE) + query, manifest)
    assert answer.is_success, answer.text
    assert answer.headers.get("Warning") is None
    return dict(answer.json())


def changes(sent: Any, stored: Any, path: str = "") -> list[str]:
    """What the API server dropped, or changed."""
    if isinstance(sent, dict):
        return [
            lost for key, value in sent.items() for lost in changes(value, (stored or {}).get(key), f"{path}.{key}")
        ]
    if isinstance(sent, list):
        pairs = zip(sent, stored or [None] * len(sent), strict=True)
        return [
            lost for number, (ours, theirs) in enumerate(pairs) for lost in changes(ours, theirs, f"{path}[{number}]")
        ]
    return [] if sent == stored else [f"{path}: sent {sent!r}, stored {stored!r}"]


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_accepted_whole(request_to: Request, name: str) -> None:
    stored = created(request_to, MANIFESTS[name], DRY_RUN)
    assert changes(MANIFESTS[name], stored) == []


@pytest.mark.usefixtures("pytorch_jobs")
@pytest.mark.parametrize("name", PYTORCH_JOBS)
def test_every_pytorch_job_is_accepted_whole(request_to: Request, name: str) -> None:
    stored = created(request_to, MANIFESTS[name], DRY_RUN)
    assert changes(MANIFESTS[name], stored) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_pods_of_every_manifest_are_allowed_where_restricted_is_enforced(request_to: Request, name: str) -> None:
    spec = MANIFESTS[name]["spec"]
    for replicas in spec.get("pytorchReplicaSpecs", {"": spec}).values():
        template = copy.deepcopy(replicas["template"])
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"]["name"] = name
        # What the API server adds to these lists itself is not asked about here.
        assert (
            created(request_to, pod, DRY_RUN)["spec"]["containers"][0]["args"] == pod["spec"]["containers"][0]["args"]
        )


def test_a_pod_without_its_security_context_is_refused(request_to: Request) -> None:
    """Else the tests above would say nothing."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}}
    pod["spec"] = {"containers": [{"name": "bare", "image": "bare"}]}
    answer = request_to("POST", POD.path(NAMESPACE) + DRY_RUN, pod)
    assert answer.status_code == 403
    assert "violates PodSecurity" in answer.json()["message"]


@pytest.mark.usefixtures("pytorch_jobs")
@pytest.mark.parametrize("name", ["train", "train-job", "index", "encode"])
def test_a_job_that_exists_can_be_stopped_twice(request_to: Request, name: str) -> None:
    """The fields of the patch may be changed; the training-operator's webhook and Kueue are not here."""
    manifest = copy.deepcopy(MANIFESTS[name])
    manifest["metadata"]["name"] = f"stopped-{name}"
    stored, kind = created(request_to, manifest), kind_of(manifest)
    patch = stop_patch(kind, stored, 1_700_000_000)
    for _ in range(2):
        answer = request_to("PATCH", kind.path(NAMESPACE, f"stopped-{name}"), patch, "application/merge-patch+json")
        assert answer.is_success, answer.text
        assert changes(patch, answer.json()) == []


@pytest.fixture
def model() -> RetrievalModel:
    document = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "alone", "namespace": NAMESPACE, "uid": "2222-3333"},
        "spec": {
            "storage": {"uri": "/storage", "persistentVolumeClaim": "models"},
            "data": {"uri": "/storage/data", "revision": "1"},
            "model": {"base": "preset:tiny"},
            "training": {"backend": "Job"},
            "promotion": {"gates": [{"min": "0.2"}]},
        },
    }
    return parse_manifest(document, "test")


async def test_an_attempt_is_made_once_stopped_and_deleted_by_the_adapter(
    request_to: Request, api_server: Path, model: RetrievalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No controller runs here, so its pods are missing, and a deletion in the foreground stays visible."""
    monkeypatch.setenv("KUBECONFIG", str(api_server))
    work = commands.train(model, revision="01234567", data_uri="/storage/data")
    path = JOB.path(NAMESPACE, work.name)
    async with connected("test") as api:
        cache = Cache()
        cache.watch(JOB)
        workloads = KubernetesWorkloads(
            WriteThrough(api, cache), cache, lambda: 1_700_000_000, images={"trainer": "trainer:1"}, reporting={}
        )
        await workloads.start(model, work)
        first = request_to("GET", path, None).json()["metadata"]["uid"]
        await workloads.start(model, work)
        assert request_to("GET", path, None).json()["metadata"]["uid"] == first
        assert [found.state for found in await workloads.observe(model)] == ["Running"]

        await workloads.stop(model, work.name)
        (found,) = await workloads.observe(model)
        assert (found.state, found.reason, found.finished_at) == ("Failed", "Stopped", 1_700_000_000)

        await workloads.delete(model, work.name)
        metadata = request_to("GET", path, None).json()["metadata"]
        assert metadata["finalizers"] == ["foregroundDeletion"]
        assert metadata["deletionTimestamp"]

"""A full manifest, its pieces of work, and the API server in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml
from kubernetes_world import KubernetesWorld, waiting_pod

from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, JOB, POD, PYTORCH_JOB
from retrieval_operator.adapters.kubernetes.programs import Reporting
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.surroundings import KubernetesSurroundings
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain import commands
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

NOW = 1_700_000_000
IMAGES = {"trainer": "retrieval-trainer:1", "indexer": "retrieval-indexer:1", "data": "retrieval-indexer:1"}
REPORTING = {"default": Reporting(tracking_uri="http://mlflow.mlflow:5000", secret="mlflow-credentials")}

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed, namespace: search, uid: 0000-1111}
spec:
  storage: {uri: /storage, persistentVolumeClaim: models, secretRef: storage-keys}
  data: {uri: /storage/data, revision: "1"}
  model: {base: "preset:tiny", dimensions: [128, 64]}
  training:
    nodes: 3
    processesPerNode: 2
    queueName: gpus
    resources: {requests: {cpu: "2"}, limits: {cpu: "4", memory: 16Gi, nvidia.com/gpu: "2"}}
    pod:
      sharedMemory: 8Gi
      nodeSelector: {accelerator: h200}
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
      priorityClassName: batch
      serviceAccountName: trainer
      imagePullSecrets: [pull]
      labels: {team: feed}
      annotations: {sidecar.istio.io/inject: "false"}
      env:
        - {name: NCCL_DEBUG, value: "cost $(A) $5"}
        - {name: TOKEN, secret: {name: tokens, key: hub}}
        - {name: REGION, configMap: {name: site, key: region}}
      volumes:
        - {name: base-models, mountPath: /models, persistentVolumeClaim: base-models}
        - {name: scratch, mountPath: /scratch, emptyDirSize: 50Gi, readOnly: false}
        - {name: settings, mountPath: /etc/site, configMap: site}
        - {name: certificates, mountPath: /etc/certificates, secret: certificates}
  index:
    encodeShards: 4
    members: true
    resources: {limits: {cpu: 500m, memory: 4Gi}}
  evaluation:
    resources: {limits: {memory: 8Gi}}
  promotion: {gates: [{min: "0.20"}]}
"""

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def make() -> Callable[..., RetrievalModel]:
    """make(lambda spec: ...) is the full manifest with its spec edited in place."""

    def build(edit: Edit = lambda _: None) -> RetrievalModel:
        document = yaml.safe_load(MANIFEST)
        edit(document["spec"])
        return parse_manifest(document, "test")

    return build


@pytest.fixture
def model(make: Callable[..., RetrievalModel]) -> RetrievalModel:
    return make()


RECORD = StackRecord(
    stack="s-1",
    bundle_id="b-1",
    bundle_uri="/storage/b",
    generation_id="g-1",
    generation_uri="/storage/g",
    generation_key="89abcdef",
    serving_hash="h",
    revision="01234567",
    data_uri="/storage/data",
)


@pytest.fixture
def record() -> StackRecord:
    """Of a stack that these steps led to."""
    return RECORD


def work_of(model: RetrievalModel) -> Mapping[str, WorkloadSpec]:
    """A first attempt at every step, as the domain asks for it."""
    serving = WorkloadStep.INDEX_SERVING
    inputs = {"key": "89abcdef", "bundle_id": "b-1", "bundle": "/storage/b", "data_uri": "/storage/data"}
    encode = commands.encode(model, serving, **inputs)
    stacks = {"candidate": ("/storage/b", "/storage/g"), "champion": None}
    address = "http://feed-s-1.search.svc:8080"
    work = {
        "train": commands.train(model, revision="01234567", data_uri="/storage/data"),
        "index": commands.index(model, serving, **inputs),
        "evaluate": commands.evaluate(model, key="89abcdef", data_uri="/storage/data", **stacks),
        "verify": commands.verify(model, key="89abcdef", record=RECORD, address=address),
    }
    reporting = {step: replace(spec, run_id="run-1") for step, spec in work.items()}
    removal = commands.collect(model, key="89abcdef", attempt=1, names=["indexes/89abcdef"])
    return {**reporting, **({"encode": encode} if encode else {}), "collect": removal}


@pytest.fixture
def work(model: RetrievalModel) -> Mapping[str, WorkloadSpec]:
    return work_of(model)


@pytest.fixture(name="work_of")
def work_of_fixture() -> Callable[[RetrievalModel], Mapping[str, WorkloadSpec]]:
    return work_of


@pytest.fixture
def now() -> list[int]:
    """The clock: now[0] in seconds since the epoch."""
    return [NOW]


@pytest.fixture
def world(now: list[int]) -> KubernetesWorld:
    found = KubernetesWorld(lambda: now[0])
    found.watch(JOB, PYTORCH_JOB, POD, INFERENCE_SERVICE)
    return found


@pytest.fixture
def workloads(world: KubernetesWorld, now: list[int]) -> KubernetesWorkloads:
    return KubernetesWorkloads(world.api, world.cache, lambda: now[0], images=IMAGES, reporting=REPORTING)


@pytest.fixture
def surroundings(world: KubernetesWorld, now: list[int]) -> KubernetesSurroundings:
    return KubernetesSurroundings(world.api, world.cache, lambda: now[0])


@pytest.fixture
def told(surroundings: KubernetesSurroundings) -> Callable[[RetrievalModel], Awaitable[dict[str, str]]]:
    """await told(model) is what its problems say, by dependency."""

    async def ask(model: RetrievalModel) -> dict[str, str]:
        return {problem.dependency: problem.message for problem in await surroundings.problems(model)}

    return ask


@pytest.fixture
def claims(world: KubernetesWorld) -> dict[str, dict[str, Any]]:
    """Both that the manifest names, bound."""
    claims = {}
    for name in ("models", "base-models"):
        metadata = {"name": name, "namespace": "search"}
        claims[name] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
        claims[name] |= {"spec": {}, "status": {"phase": "Bound"}}
        world.put(claims[name])
    return claims


@pytest.fixture
async def server(
    world: KubernetesWorld, model: RetrievalModel, record: StackRecord, now: list[int], claims: object
) -> str:
    """A pod of a stack that waits for its volumes."""
    stacks = KubernetesStacks(world.api, world.cache, lambda: now[0], images={"encoderServer": "server:1"})
    await stacks.create(model, record, 1)
    (pod,) = world.add_predictor_pods("search", "feed-s-1", 1)
    world.set_status(POD, "search", pod, waiting_pod("ContainerCreating"))
    return pod


@pytest.fixture
def going(model: RetrievalModel) -> RetrievalModel:
    """The full manifest's object, being deleted."""
    metadata = model.metadata.model_copy(update={"deletion_timestamp": NOW})
    return model.model_copy(update={"metadata": metadata})

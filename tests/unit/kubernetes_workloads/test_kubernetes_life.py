"""The whole control plane over the API server in memory: a first life, with every adapter of a cluster but MLflow's."""

from __future__ import annotations

import pytest
import yaml

from retrieval_operator.adapters.kubernetes.feed import WATCHED
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, JOB, PYTORCH_JOB, RETRIEVAL_MODEL, SERVICE
from retrieval_operator.adapters.kubernetes.models import KubernetesModelStore
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.surroundings import KubernetesSurroundings
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.adapters.memory import MemoryRegistry
from retrieval_operator.api.constants import LABEL_ATTEMPT, LABEL_KEY, LABEL_STEP
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.controller import Controller
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.perform import Ports

OBJECT = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed, namespace: search}
spec:
  storage: {uri: /storage}
  data: {uri: /data, revision: "1"}
  model: {base: "preset:tiny", dimensions: [128, 64]}
  training: {nodes: 2}
  index: {encodeShards: 3}
  promotion: {gates: [{min: "0.20"}]}
"""
PASSES = 80


@pytest.fixture
def registry():
    return MemoryRegistry()


@pytest.fixture
def controller(world, workloads, registry, now):
    world.watch(*WATCHED)

    def clock() -> int:
        return now[0]

    ports = Ports(
        models=KubernetesModelStore(world.api, world.cache, clock, instance="test"),
        workloads=workloads,
        stacks=KubernetesStacks(world.api, world.cache, clock, images={"encoderServer": "encoder-server:1"}),
        traffic=KubernetesTraffic(world.api, world.cache, clock),
        registry=registry,
        surroundings=KubernetesSurroundings(world.api, world.cache, clock),
    )
    return Controller(ports, decide, clock)


def under_way(world):
    for kind in (JOB, PYTORCH_JOB):
        for obj in world.objects(kind):
            if "status" not in obj:
                yield kind, obj


def spec_of(obj) -> WorkloadSpec:
    """What a Job was asked for, read back from its manifest."""
    labels, spec = obj["metadata"]["labels"], obj["spec"]
    template = spec.get("template") or spec["pytorchReplicaSpecs"]["Master"]["template"]
    return WorkloadSpec(
        name=obj["metadata"]["name"],
        step=WorkloadStep(labels[LABEL_STEP]),
        key=labels[LABEL_KEY],
        attempt=int(labels[LABEL_ATTEMPT]),
        program="",
        arguments=tuple(word.replace("$$", "$") for word in template["spec"]["containers"][0]["args"]),
    )


async def play_the_cluster(world, registry, model) -> None:
    """Every program succeeds and reports, every server becomes ready."""
    for kind, obj in list(under_way(world)):
        spec = spec_of(obj)
        report = passing_report(spec)
        if report:
            registry.attach_report(model, spec.step, spec.key, report)
        (world.finish_job if kind is JOB else world.finish_pytorch_job)("search", spec.name)
    for service in world.objects(INFERENCE_SERVICE):
        world.add_predictor_pods("search", service["metadata"]["name"], 1)


async def read(world, now) -> RetrievalModel:
    return await KubernetesModelStore(world.api, world.cache, lambda: now[0], instance="reader").get("search/feed")


async def promoted(controller, world, registry, now) -> RetrievalModel:
    """The object when its first stack is live."""
    world.put(yaml.safe_load(OBJECT))
    for _ in range(PASSES):
        result = await controller.reconcile("search/feed")
        assert result.outcome in ("settled", "acted", "repeated"), result
        model = await read(world, now)
        await play_the_cluster(world, registry, model)
        now[0] += 1
        if model.status.phase == "Live":
            return model
    raise AssertionError("it is not promoted")


async def test_an_applied_object_is_promoted_and_every_piece_of_work_was_made_once(controller, world, registry, now):
    model = await promoted(controller, world, registry, now)
    made = [spec_of(obj) for kind in (PYTORCH_JOB, JOB) for obj in world.objects(kind)]
    assert sorted((work.step.value, work.attempt) for work in made) == [
        ("encode", 1), ("encode", 1), ("eval", 1), ("idxeval", 1), ("index", 1), ("train", 1), ("verify", 1),
    ]  # fmt: skip
    created = [name for verb, kind, name in world.requests if verb == "create" and kind in ("Job", "PyTorchJob")]
    assert len(created) == len(set(created)) == len(made)
    assert model.status.address
    assert world.object(RETRIEVAL_MODEL, "search", "feed")["spec"] == yaml.safe_load(OBJECT)["spec"], "never written"


async def test_a_stable_service_that_leads_nowhere_is_told_and_made_whole_in_the_next_pass(
    controller, world, registry, now
):
    """Its champion is compared with that of the status, as the API server gave it back."""
    before = await promoted(controller, world, registry, now)
    whole = world.object(SERVICE, "search", "feed")["spec"]
    world.change(SERVICE, "search", "feed", {"spec": {"selector": {"app": "typo"}}})
    assert (await controller.reconcile("search/feed")).outcome == "acted"
    assert world.object(SERVICE, "search", "feed")["spec"] == whole
    assert ready(await read(world, now)) == "False"
    await controller.reconcile("search/feed")
    after = await read(world, now)
    assert (ready(after), after.status.champion) == ("True", before.status.champion)


def ready(model: RetrievalModel) -> str:
    return next(said.status for said in model.status.conditions if said.type == "Ready")

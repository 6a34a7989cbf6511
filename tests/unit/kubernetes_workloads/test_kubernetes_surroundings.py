"""What a person must mend in a cluster, said before work fails where it can be known, else when it is seen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from retrieval_operator.adapters.kubernetes.kinds import (
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    NAMESPACE,
    PERSISTENT_VOLUME_CLAIM,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    SERVICE,
)
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.surroundings import KubernetesSurroundings
from retrieval_operator.api.types import rfc3339
from retrieval_operator.ports import Rejected, Retryable

JOB_NAME = "feed-89abcdef-index-1"


@pytest.fixture
def surroundings(world, now):
    return KubernetesSurroundings(world.api, world.cache, lambda: now[0])


def claim(name: str, **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "search"}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": {}, "status": status}


@pytest.fixture
def claims(world):
    for name in ("models", "base-models"):
        world.put(claim(name))
        world.set_status(PERSISTENT_VOLUME_CLAIM, "search", name, {"phase": "Bound"})


async def told(surroundings, model) -> dict[str, str]:
    return {problem.dependency: problem.message for problem in await surroundings.problems(model)}


async def test_nothing_is_missing_where_all_is_there(surroundings, model, claims):
    assert await told(surroundings, model) == {}


async def test_definitions_that_are_not_installed_are_named_with_the_way_out(surroundings, world, model, make, claims):
    world.cache.unwatch(PYTORCH_JOB)
    world.cache.unwatch(INFERENCE_SERVICE)
    found = await told(surroundings, model)
    assert set(found) == {"trainingOperator", "kserve"}
    assert "training.backend: Job" in found["trainingOperator"]
    alone = make(lambda spec: spec["training"].update(backend="Job", nodes=1))
    assert set(await told(surroundings, alone)) == {"kserve"}


async def test_the_storage_is_told_apart_by_the_uid_of_its_claim(surroundings, world, model, make, claims):
    first = await surroundings.storage_id(model)
    assert first == world.object(PERSISTENT_VOLUME_CLAIM, "search", "models")["metadata"]["uid"] != ""
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "models")
    world.put(claim("models"))
    again = model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": "another-object"})})
    assert await surroundings.storage_id(again) not in ("", first)


async def test_the_storage_is_not_guessed(surroundings, world, model, make):
    assert await surroundings.storage_id(model) == "", "its claim is not there"
    unclaimed = make(lambda spec: spec["storage"].pop("persistentVolumeClaim"))
    assert await surroundings.storage_id(unclaimed) == ""


@pytest.mark.parametrize(
    ("phase", "words"),
    [("Bound", None), ("Pending", None), ("Lost", "has lost its volume"), (None, "does not exist")],
)
async def test_a_claim_must_exist_and_may_wait_for_its_first_pod(surroundings, world, model, claims, phase, words):
    if phase is None:
        world.remove(PERSISTENT_VOLUME_CLAIM, "search", "models")
    else:
        world.set_status(PERSISTENT_VOLUME_CLAIM, "search", "models", {"phase": phase})
    problems = await surroundings.problems(model)
    assert [problem.holds_back for problem in problems] == ([True] if words else [])
    assert all(words in problem.message for problem in problems)


async def test_claims_of_volumes_count_and_are_named_by_their_field(surroundings, world, model, claims):
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "base-models")
    assert (
        "training.pod.volumes: PersistentVolumeClaim search/base-models" in (await told(surroundings, model))["storage"]
    )


async def test_a_claim_is_asked_for_once_in_a_while(surroundings, world, model, now, claims):
    for _ in range(3):
        await surroundings.problems(model)
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 1
    now[0] += 60
    await surroundings.problems(model)
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 2


def being_deleted(model):
    metadata = model.metadata.model_copy(update={"deletion_timestamp": 1_700_000_000})
    return model.model_copy(update={"metadata": metadata})


async def test_of_an_object_that_is_deleted_it_matters_whether_its_namespace_goes_too(
    surroundings, world, model, claims
):
    gone = being_deleted(model)
    assert await told(surroundings, gone) == {}
    world.terminate_namespace("search")
    assert await told(surroundings, gone) == {"namespace": "namespace search is being deleted"}


async def test_the_namespace_of_an_object_that_stays_is_not_asked_for(surroundings, world, model, claims):
    world.terminate_namespace("search")
    assert await told(surroundings, model) == {}
    assert ("get", "Namespace", "search") not in world.requests


async def test_an_operator_that_may_not_see_the_namespace_takes_it_for_one_that_stays(
    surroundings, world, model, claims
):
    world.terminate_namespace("search")
    world.fail("get", NAMESPACE, Rejected("forbidden"))
    assert await told(surroundings, being_deleted(model)) == {}


async def test_what_this_operator_may_not_see_is_no_problem(surroundings, world, model):
    world.fail("get", PERSISTENT_VOLUME_CLAIM, Rejected("forbidden"), times=2)
    assert await told(surroundings, model) == {}


async def test_a_claim_cannot_be_mounted_at_a_remote_address(surroundings, make, claims):
    model = make(lambda spec: spec["storage"].update(uri="s3://bucket/models"))
    assert "expected an absolute path" in (await told(surroundings, model))["storage"]


def waits(reason: str, message: str = "") -> dict[str, Any]:
    waiting = {"name": "main", "image": "registry.example/indexer:1", "state": {"waiting": {"reason": reason}}}
    waiting["state"]["waiting"]["message"] = message
    return {"phase": "Pending", "containerStatuses": [waiting]}


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
    ],
}


@pytest.mark.parametrize(
    ("status", "dependency", "words"),
    [
        (waits("ErrImagePull"), "program", "registry.example/indexer:1, which cannot be pulled"),
        (waits("CreateContainerConfigError", 'secret "storage-keys" not found'), "secret", '"storage-keys" not found'),
        (waits("CreateContainerError", "no such file"), "program", "no such file"),
        (UNSCHEDULABLE, "quota", "0/1 nodes are available"),
    ],
    ids=["image", "secret", "command", "room"],
)
async def test_what_a_pod_waits_for_is_told_and_holds_nothing_back(
    surroundings, workloads, world, model, work, claims, status, dependency, words
):
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.set_status(POD, "search", name, status)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert words in problem.message
    world.finish_job("search", JOB_NAME, 1)
    assert await told(surroundings, model) == {}, "what is over waits for nothing"


async def test_both_words_of_a_missing_image_are_one_problem(surroundings, workloads, world, model, work, claims):
    """The kubelet alternates between them; the status is written only when something changes."""
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    found = []
    for reason in ("ErrImagePull", "ImagePullBackOff"):
        world.set_status(POD, "search", name, waits(reason, f"{reason} after 3 tries"))
        found.append(await told(surroundings, model))
    assert found[0] == found[1]


@pytest.mark.parametrize(("status", "host"), [({"hostIP": "10.0.0.5"}, "10.0.0.5"), ({}, None)], ids=str)
async def test_a_pod_on_a_lost_node_is_told_with_the_way_out(
    surroundings, workloads, world, model, work, now, claims, status, host
):
    """podReplacementPolicy: Failed makes no other one, and its attempt runs until its deadline."""
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.change(POD, "search", name, {"status": status})
    going = {"deletionTimestamp": rfc3339(now[0] + 30), "finalizers": ["x/y"]}
    world.change(POD, "search", name, {"metadata": going})
    now[0] += 89
    assert await told(surroundings, model) == {}, "it may end in good order"
    now[0] += 1
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == ("program", False)
    assert problem.message.startswith(f"pod {name} should be gone, but its node")
    assert (f"({host} in" in problem.message) is (host is not None)
    assert "delete that node, or" in problem.message
    assert problem.message.endswith(f"kubectl --namespace search delete pod {name} --force")
    now[0] += 3600
    assert await surroundings.problems(model) == [problem], "a status is written when it changes"
    world.end_pod("search", name, 143)
    assert await told(surroundings, model) == {}, "it has ended, and only its record stays"


def warn(world, obj: dict[str, Any], reason: str, message: str) -> None:
    involved = {"kind": obj["kind"], "name": obj["metadata"]["name"], "uid": obj["metadata"]["uid"]}
    world.put(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{obj['metadata']['name']}.{reason.lower()}", "namespace": "search"},
            "type": "Warning",
            "involvedObject": involved,
            "reason": reason,
            "message": message,
        }
    )


QUOTA = 'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=5, limited: pods=5'
RESTRICTED = 'Error creating: pods "x-worker-0" is forbidden: violates PodSecurity "restricted:latest"'


@pytest.mark.parametrize(
    ("message", "dependency"),
    [
        (QUOTA, "quota"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "podSecurity"),
        ("error looking up service account search/trainer: not found", "program"),
    ],
    ids=["quota", "PodSecurity", "service account"],
)
async def test_pods_that_are_never_made_are_explained_by_the_events(
    surroundings, workloads, world, model, work, now, claims, message, dependency
):
    await workloads.start(model, work["index"])
    warn(world, world.object(JOB, "search", JOB_NAME), "FailedCreate", message)
    assert await told(surroundings, model) == {}, "a controller needs a moment"
    assert ("list", "Event", "") not in world.requests
    now[0] += 61
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert message in problem.message
    world.start_job("search", JOB_NAME)
    assert await told(surroundings, model) == {}, "what was refused then is made by now"


async def test_workers_that_pod_security_refuses_are_told_with_the_remedy(
    surroundings, workloads, world, model, work, now, claims
):
    await workloads.start(model, work["train"])
    for name in world.start_pytorch_job("search", "feed-01234567-train-1")[1:]:
        world.remove(POD, "search", name)
    warn(world, world.object(PYTORCH_JOB, "search", "feed-01234567-train-1"), "FailedCreatePod", RESTRICTED)
    now[0] += 61
    (problem,) = await surroundings.problems(model)
    assert problem.dependency == "podSecurity"
    assert "--pytorch-init-container-template-file" in problem.message


@pytest.mark.parametrize(
    ("message", "dependency"),
    [
        ('MountVolume.SetUp failed for volume "certificates": secret "certificates" not found', "secret"),
        ('MountVolume.SetUp failed for volume "nfs": exit status 32', "storage"),
    ],
)
async def test_a_volume_that_cannot_be_mounted_is_told(
    surroundings, workloads, world, model, work, now, claims, message, dependency
):
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.set_status(POD, "search", name, waits("ContainerCreating"))
    warn(world, world.object(POD, "search", name), "FailedMount", message)
    now[0] += 61
    assert message in (await told(surroundings, model))[dependency]


@pytest.mark.parametrize("step", ["train", "index"])
async def test_what_waits_in_a_queue_is_no_problem(surroundings, workloads, world, model, work, now, claims, step):
    await workloads.start(model, work[step])
    kind, name = (PYTORCH_JOB, "feed-01234567-train-1") if step == "train" else (JOB, JOB_NAME)
    suspended = {"runPolicy": {"suspend": True}} if step == "train" else {"suspend": True}
    world.change(kind, "search", name, {"spec": suspended})
    now[0] += 3600
    assert await told(surroundings, model) == {}
    assert ("list", EVENT.kind, "") not in world.requests


def address(**metadata: Any) -> dict[str, Any]:
    metadata = {"name": "feed", "namespace": "search", **metadata}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": "theirs"}}}


def of_a_model(uid: str) -> dict[str, Any]:
    owner = {"kind": "RetrievalModel", "name": "feed", "uid": uid}
    return {"labels": {"app.kubernetes.io/managed-by": "retrieval-operator"}, "ownerReferences": [owner]}


LOOKED = ("get", "Service", "feed")


async def test_an_address_that_is_somebody_elses_holds_work_back_before_there_is_a_champion(
    surroundings, world, model, now, claims
):
    world.put(address())
    (problem,) = await surroundings.problems(model)
    assert problem.holds_back
    assert "Service search/feed is taken by somebody else's; delete or rename that one" in problem.message
    world.remove(SERVICE, "search", "feed")
    now[0] += 60
    assert await told(surroundings, model) == {}


async def test_whose_the_address_is_is_asked_for_once_in_a_while(surroundings, world, model, now, claims):
    for _ in range(3):
        await surroundings.problems(model)
    assert world.requests.count(LOOKED) == 1
    now[0] += 60
    await surroundings.problems(model)
    assert world.requests.count(LOOKED) == 2


async def test_an_object_with_a_champion_does_not_ask_for_its_address(surroundings, world, model, claims):
    world.put(address(**of_a_model(model.metadata.uid)))
    assert await told(surroundings, model) == {}
    assert LOOKED not in world.requests


async def test_nor_does_one_that_begins_nothing(surroundings, world, model, make, claims):
    world.put(address())
    suspended = make(lambda spec: spec.update(suspend=True))
    for resting in (suspended, being_deleted(model)):
        assert await told(surroundings, resting) == {}
    assert LOOKED not in world.requests


async def test_the_address_of_a_former_object_goes_by_itself(surroundings, world, model, claims):
    world.put(address(**of_a_model("of-the-former")))
    assert await told(surroundings, model) == {}


async def test_an_address_that_lost_its_label_holds_work_back_until_it_has_it_again(
    surroundings, world, model, now, claims
):
    """The watches do not tell of it, so it looks as if there were no champion."""
    ours = of_a_model(model.metadata.uid)
    world.put(address(**ours))
    world.change(SERVICE, "search", "feed", {"metadata": {"labels": None}})
    (problem,) = await surroundings.problems(model)
    assert problem.holds_back
    assert "set app.kubernetes.io/managed-by=retrieval-operator" in problem.message
    world.change(SERVICE, "search", "feed", {"metadata": {"labels": ours["labels"]}})
    assert await told(surroundings, model) == {}


async def test_an_operator_that_may_not_see_services_takes_the_address_for_free(surroundings, world, model, claims):
    world.put(address())
    world.fail("get", SERVICE, Rejected("forbidden"))
    assert await told(surroundings, model) == {}


MULTI_ATTACH = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) feed-s-0-predictor-1'
MISSING = 'MountVolume.SetUp failed for volume "certificates": secret "certificates" not found'


@pytest.fixture
async def server(world, model, record, now, claims) -> str:
    """A pod of a stack that waits for its volumes."""
    stacks = KubernetesStacks(world.api, world.cache, lambda: now[0], images={"encoderServer": "server:1"})
    await stacks.create(model, record, 1)
    (pod,) = world.add_predictor_pods("search", "feed-s-1", 1)
    world.set_status(POD, "search", pod, waits("ContainerCreating"))
    return pod


@pytest.mark.parametrize(
    ("reason", "message", "dependency", "remedy"),
    [
        ("FailedAttachVolume", MULTI_ATTACH, "storage", "ReadWriteMany"),
        ("FailedMount", MISSING, "secret", 'secret "certificates" not found'),
    ],
    ids=["a claim that another node has", "a Secret that is not there"],
)
async def test_what_keeps_a_server_from_starting_is_told(
    surroundings, world, model, server, now, reason, message, dependency, remedy
):
    warn(world, world.object(POD, "search", server), reason, message)
    assert await told(surroundings, model) == {}, "volumes need a moment"
    assert ("list", "Event", "") not in world.requests
    now[0] += 61
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert problem.message.startswith(f"feed-s-1 does not start: {message}")
    assert remedy in problem.message
    world.run_pod("search", server)
    assert await told(surroundings, model) == {}, "it has started"


async def test_a_stack_whose_record_is_damaged_is_told_and_holds_nothing_back(surroundings, world, model, server):
    world.run_pod("search", server)
    assert await told(surroundings, model) == {}
    damaged = {"metadata": {"annotations": {"retrieval-operator.io/record": "{"}}}
    for kind in (SERVICE, POD_DISRUPTION_BUDGET):
        world.change(kind, "search", "feed-s-1", damaged)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back, problem.keeps_files) == ("address", False, True)
    assert problem.message.startswith("Service search/feed-s-1 cannot be read")


@pytest.mark.parametrize("kind", [POD, INFERENCE_SERVICE], ids=str)
async def test_a_server_that_goes_waits_for_nothing(surroundings, world, model, server, now, kind):
    warn(world, world.object(POD, "search", server), "FailedAttachVolume", MULTI_ATTACH)
    going = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]}}
    world.change(kind, "search", server if kind is POD else "feed-s-1", going)
    now[0] += 61
    assert await told(surroundings, model) == {}


BUSY = Retryable("429: too many requests")


async def test_an_answer_that_cannot_be_had_ends_no_pass_and_is_asked_for_once_in_a_while(
    surroundings, world, model, now, claims
):
    """What is repaired or rolled back in the same pass is known from the cache."""
    world.fail("get", PERSISTENT_VOLUME_CLAIM, BUSY, times=2)
    with capture_logs() as logs:
        for _ in range(3):
            problems = await surroundings.problems(model)
    assert [(problem.dependency, problem.holds_back) for problem in problems] == [("storage", True)] * 2
    assert "PersistentVolumeClaim search/models could not be looked up" in problems[0].message
    assert await surroundings.storage_id(model) == "", "no proof is taken back for it"
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 1
    assert [entry["about"].split()[2] for entry in logs] == ["models", "base-models"]
    now[0] += 30
    assert await told(surroundings, model) == {}


async def test_what_was_known_counts_on_for_a_while_when_no_answer_can_be_had(surroundings, world, model, now, claims):
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "base-models")
    first, storage = await surroundings.problems(model), await surroundings.storage_id(model)
    world.fail("get", PERSISTENT_VOLUME_CLAIM, BUSY, times=100)
    with capture_logs() as logs:
        for _ in range(9):
            now[0] += 30
            assert await surroundings.problems(model) == first
            assert await surroundings.storage_id(model) == storage
    assert len(logs) == 2, "once for each claim"
    now[0] += 30
    assert all("could not be looked up" in problem.message for problem in await surroundings.problems(model))
    assert await surroundings.storage_id(model) == ""


async def test_whose_the_address_is_holds_work_back_while_it_is_not_known(surroundings, world, model, now, claims):
    world.fail("get", SERVICE, BUSY)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == ("address", True)
    assert "Service search/feed could not be looked up" in problem.message
    now[0] += 30
    assert await told(surroundings, model) == {}


async def test_events_that_cannot_be_listed_leave_what_they_said_before(surroundings, world, model, server, now):
    now[0] += 61
    world.fail("list", EVENT, BUSY)
    assert await told(surroundings, model) == {}
    warn(world, world.object(POD, "search", server), "FailedMount", MISSING)
    now[0] += 30
    first = await surroundings.problems(model)
    assert [problem.dependency for problem in first] == ["secret"]
    world.fail("list", EVENT, BUSY)
    now[0] += 30
    assert await surroundings.problems(model) == first


async def test_a_namespace_that_is_not_known_to_go_stays(surroundings, world, model, claims):
    world.fail("get", NAMESPACE, BUSY)
    assert await told(surroundings, being_deleted(model)) == {}


class SilentApi:
    """Takes every request, and never answers."""

    def __init__(self) -> None:
        self.requests = 0

    async def get(self, *_: Any) -> Any:
        self.requests += 1
        await asyncio.Event().wait()

    list = get


async def test_a_pass_does_not_wait_long_for_an_api_server_that_is_silent(world, model, server, now):
    """All of its answers together, and not again in the next one."""
    api = SilentApi()
    surroundings = KubernetesSurroundings(api, world.cache, lambda: now[0], deadline_s=0.5)
    now[0] += 61
    async with asyncio.timeout(1.5):
        first = await surroundings.problems(model)
    asked, api.requests = api.requests, 0
    assert asked == 4, "two claims, the stable Service, and the events of a server that does not start"
    assert [problem.dependency for problem in first] == ["storage", "storage", "address"]
    assert await surroundings.problems(model) == first
    assert api.requests == 0

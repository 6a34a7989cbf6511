"""What keeps work that was started from running, said when it is seen."""

from __future__ import annotations

import pytest
from kubernetes_world import waiting_pod

from retrieval_operator.adapters.kubernetes.kinds import (
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    SERVICE,
)
from retrieval_operator.api.types import rfc3339

JOB_NAME = "feed-89abcdef-index-1"
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
    ],
}


@pytest.mark.parametrize(
    ("status", "dependency", "words"),
    [
        (waiting_pod("ErrImagePull"), "program", "registry.example/indexer:1, which cannot be pulled"),
        (
            waiting_pod("CreateContainerConfigError", 'secret "storage-keys" not found'),
            "secret",
            '"storage-keys" not found',
        ),
        (waiting_pod("CreateContainerError", "no such file"), "program", "no such file"),
        (UNSCHEDULABLE, "quota", "0/1 nodes are available"),
    ],
    ids=["image", "secret", "command", "room"],
)
async def test_what_a_pod_waits_for_is_told_and_holds_nothing_back(
    told, surroundings, workloads, world, model, work, claims, status, dependency, words
):
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.set_status(POD, "search", name, status)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert words in problem.message
    world.finish_job("search", JOB_NAME, 1)
    assert await told(model) == {}, "what is over waits for nothing"


async def test_both_words_of_a_missing_image_are_one_problem(told, workloads, world, model, work, claims):
    """The kubelet alternates between them; the status is written only when something changes."""
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    found = []
    for reason in ("ErrImagePull", "ImagePullBackOff"):
        world.set_status(POD, "search", name, waiting_pod(reason, f"{reason} after 3 tries"))
        found.append(await told(model))
    assert found[0] == found[1]


@pytest.mark.parametrize(("status", "host"), [({"hostIP": "10.0.0.5"}, "10.0.0.5"), ({}, None)], ids=str)
async def test_a_pod_on_a_lost_node_is_told_with_the_way_out(
    told, surroundings, workloads, world, model, work, now, claims, status, host
):
    """podReplacementPolicy: Failed makes no other one, and its attempt runs until its deadline."""
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.change(POD, "search", name, {"status": status})
    going = {"deletionTimestamp": rfc3339(now[0] + 30), "finalizers": ["x/y"]}
    world.change(POD, "search", name, {"metadata": going})
    now[0] += 89
    assert await told(model) == {}, "it may end in good order"
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
    assert await told(model) == {}, "it has ended, and only its record stays"


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
    told, surroundings, workloads, world, model, work, now, claims, message, dependency
):
    await workloads.start(model, work["index"])
    world.warn(world.object(JOB, "search", JOB_NAME), "FailedCreate", message)
    assert await told(model) == {}, "a controller needs a moment"
    assert ("list", "Event", "") not in world.requests
    now[0] += 61
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert message in problem.message
    world.start_job("search", JOB_NAME)
    assert await told(model) == {}, "what was refused then is made by now"


async def test_workers_that_pod_security_refuses_are_told_with_the_remedy(
    surroundings, workloads, world, model, work, now, claims
):
    await workloads.start(model, work["train"])
    for name in world.start_pytorch_job("search", "feed-01234567-train-1")[1:]:
        world.remove(POD, "search", name)
    world.warn(world.object(PYTORCH_JOB, "search", "feed-01234567-train-1"), "FailedCreatePod", RESTRICTED)
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
    told, workloads, world, model, work, now, claims, message, dependency
):
    await workloads.start(model, work["index"])
    name = world.start_job("search", JOB_NAME)
    world.set_status(POD, "search", name, waiting_pod("ContainerCreating"))
    world.warn(world.object(POD, "search", name), "FailedMount", message)
    now[0] += 61
    assert message in (await told(model))[dependency]


@pytest.mark.parametrize("step", ["train", "index"])
async def test_what_waits_in_a_queue_is_no_problem(told, workloads, world, model, work, now, claims, step):
    await workloads.start(model, work[step])
    kind, name = (PYTORCH_JOB, "feed-01234567-train-1") if step == "train" else (JOB, JOB_NAME)
    suspended = {"runPolicy": {"suspend": True}} if step == "train" else {"suspend": True}
    world.change(kind, "search", name, {"spec": suspended})
    now[0] += 3600
    assert await told(model) == {}
    assert ("list", EVENT.kind, "") not in world.requests


MULTI_ATTACH = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) feed-s-0-predictor-1'
MISSING = 'MountVolume.SetUp failed for volume "certificates": secret "certificates" not found'


@pytest.mark.parametrize(
    ("reason", "message", "dependency", "remedy"),
    [
        ("FailedAttachVolume", MULTI_ATTACH, "storage", "ReadWriteMany"),
        ("FailedMount", MISSING, "secret", 'secret "certificates" not found'),
    ],
    ids=["a claim that another node has", "a Secret that is not there"],
)
async def test_what_keeps_a_server_from_starting_is_told(
    told, surroundings, world, model, server, now, reason, message, dependency, remedy
):
    world.warn(world.object(POD, "search", server), reason, message)
    assert await told(model) == {}, "volumes need a moment"
    assert ("list", "Event", "") not in world.requests
    now[0] += 61
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == (dependency, False)
    assert problem.message.startswith(f"feed-s-1 does not start: {message}")
    assert remedy in problem.message
    world.run_pod("search", server)
    assert await told(model) == {}, "it has started"


async def test_a_stack_whose_record_is_damaged_is_told_and_holds_nothing_back(told, surroundings, world, model, server):
    world.run_pod("search", server)
    assert await told(model) == {}
    damaged = {"metadata": {"annotations": {"retrieval-operator.io/record": "{"}}}
    for kind in (SERVICE, POD_DISRUPTION_BUDGET):
        world.change(kind, "search", "feed-s-1", damaged)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back, problem.keeps_files) == ("address", False, True)
    assert problem.message.startswith("Service search/feed-s-1 cannot be read")


@pytest.mark.parametrize("kind", [POD, INFERENCE_SERVICE], ids=str)
async def test_a_server_that_goes_waits_for_nothing(told, world, model, server, now, kind):
    world.warn(world.object(POD, "search", server), "FailedAttachVolume", MULTI_ATTACH)
    going = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]}}
    world.change(kind, "search", server if kind is POD else "feed-s-1", going)
    now[0] += 61
    assert await told(model) == {}

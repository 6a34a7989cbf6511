"""What is seen of an attempt: from the conditions of its Job and the words of its pods. Nothing is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import JOB, POD, PYTORCH_JOB
from retrieval_operator.adapters.kubernetes.pod_status import first_failure, image_digest
from retrieval_operator.adapters.kubernetes.workloads import QUEUE_LABEL, STOPPED_ANNOTATION, is_overdue
from retrieval_operator.api.types import rfc3339
from retrieval_operator.ports import Rejected, Retryable, Stale

AT = "2026-01-31T12:00:00Z"


def ended(code: int, message: str = "", *, reason: str = "Error", at: str = AT, state: str = "state") -> dict[str, Any]:
    end = {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}
    return {"name": "main", state: {"terminated": end}}


def pod(*containers: dict[str, Any], phase: str = "Failed", **status: Any) -> dict[str, Any]:
    metadata = {"name": "pod", "creationTimestamp": AT}
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": list(containers), **status}}


SAID = '{"reason": "BadInput", "message": "items: column title is missing"}'
PEER = '{"reason": "Crashed", "message": "RuntimeError: Connection closed by peer"}'
EARLY, LATE = "2026-01-31T11:00:00Z", "2026-01-31T13:00:00Z"
STORAGE_FAILED = ended(74, '{"reason": "StorageFailed", "message": "timed out"}', at=EARLY, state="lastState")
EVICTED = {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
PREEMPTED = {
    "conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": EARLY}
    ]
}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([pod(ended(0))], None),
        ([pod(phase="Pending")], None),
        ([pod(ended(65, SAID))], (65, "BadInput", "items: column title is missing")),
        ([pod(ended(65, ""))], (65, "BadInput", "")),
        ([pod(ended(1, "Traceback\nValueError: no"))], (1, "Crashed", "Traceback\nValueError: no")),
        ([pod(ended(1, '["not", "ours"]'))], (1, "Crashed", '["not", "ours"]')),
        ([pod(ended(137, "", reason="OOMKilled"))], (137, "OOMKilled", "it needed more memory than its limit allows")),
        ([pod(ended(143), **EVICTED)], (None, "Evicted", EVICTED["message"])),
        ([pod(ended(1, SAID, state="lastState"), phase="Running")], (1, "BadInput", "items: column title is missing")),
        ([pod(ended(74, at=LATE)), pod(ended(75, at=EARLY))], (75, "TemporarilyUnavailable", "")),
        ([pod(ended(1, "peer", at=EARLY)), pod(ended(137, reason="OOMKilled", at=LATE))], (137, "OOMKilled", ...)),
        ([pod(ended(1, "peer", at=EARLY)), pod(**EVICTED)], (None, "Evicted", ...)),
        ([pod(ended(143), **PREEMPTED), pod(ended(65, SAID, at=LATE))], (65, "BadInput", ...)),
        ([pod(ended(1, PEER, at=EARLY)), pod(ended(1, SAID, at=LATE))], (1, "BadInput", ...)),
        ([pod(STORAGE_FAILED, phase="Succeeded"), pod(ended(65, SAID, at=LATE))], (65, "BadInput", ...)),
        ([pod(STORAGE_FAILED, phase="Succeeded"), pod(ended(1, SAID, at=LATE))], (1, "BadInput", ...)),
        ([pod(ended(2, at=LATE)), pod(ended(69, at=EARLY)), pod(STORAGE_FAILED)], (69, "Diverged", ...)),
    ],
    ids=[
        "a success is no failure",
        "nor is a pod that has not started",
        "the program's own words",
        "its exit code has a meaning without words",
        "else the end of its log",
        "whatever that looks like",
        "out of memory, by the kubelet's word",
        "an evicted pod, whatever its container ended with",
        "a container that was started again has failed before",
        "the first of several",
        "out of memory before a crash, which may follow from it",
        "and so an eviction",
        "a program's words before a preemption, after which it was started again",
        "a reason before the crash of a peer, which has words as well",
        "what another try would not mend before what one has mended",
        "by its words, whatever a launcher made of its code",
        "the first of several such",
    ],
)
def test_the_failure_that_is_told(pods, expected):
    failure = first_failure(pods)
    if expected is None:
        assert failure is None
        return
    code, reason, message = expected
    assert (failure.exit_code, failure.reason) == (code, reason)
    assert message in (..., failure.message)


async def seen(workloads, model):
    (found,) = await workloads.observe(model)
    return found


@pytest.fixture
async def started(workloads, world, make, work_of) -> Callable[..., Any]:
    """started("Job") is an object whose training runs with this backend; its name is in `name_of`."""

    async def start(backend: str = "Job", **training: Any):
        nodes = 1 if backend == "Job" else 2
        model = make(lambda spec: spec["training"].update(backend=backend, nodes=nodes, **training))
        await workloads.start(model, work_of(model)["train"])
        return model

    return start


NAME = "feed-01234567-train-1"
FAILED = {"type": "Failed", "status": "True", "lastTransitionTime": LATE}


async def test_observing_and_starting_again_ask_for_nothing_but_the_creation(started, workloads, world):
    model = await started()
    before = list(world.requests)
    await workloads.observe(model)
    assert world.requests == before == [("create", "Job", NAME)]


async def test_out_of_memory_names_the_field_to_raise(started, workloads, world):
    model = await started()
    world.finish_job("search", NAME, 137, reason="OOMKilled")
    found = await seen(workloads, model)
    assert (found.state, found.exit_code, found.reason) == ("Failed", 137, "OOMKilled")
    assert found.message.endswith("raise spec.training.resources.limits.memory")


@pytest.mark.parametrize(
    ("kind", "backend", "condition"),
    [
        (JOB, "Job", FAILED | {"reason": "DeadlineExceeded", "message": "Job was active longer"}),
        (
            PYTORCH_JOB,
            "PyTorchJob",
            FAILED | {"message": "failed because it was active longer than specified deadline"},
        ),
    ],
    ids=["Job", "PyTorchJob"],
)
async def test_a_deadline_goes_before_what_programs_said_when_they_were_ended(
    started, workloads, world, kind, backend, condition
):
    model = await started(backend)
    pods = world.start_pytorch_job("search", NAME) if backend == "PyTorchJob" else [world.start_job("search", NAME)]
    for name in pods:
        world.end_pod("search", name, 143)
    world.change(kind, "search", NAME, {"status": {"conditions": [condition]}})
    found = await seen(workloads, model)
    assert (found.state, found.reason, found.exit_code) == ("Failed", "DeadlineExceeded", None)


async def test_what_kept_a_pod_from_starting_is_told_when_the_deadline_ends_it(started, workloads, world):
    model = await started()
    name = world.start_job("search", NAME)
    waiting = {"name": "main", "image": "typo:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    world.change(POD, "search", name, {"status": {"phase": "Pending", "containerStatuses": [waiting]}})
    assert (await seen(workloads, model)).state == "Running"
    world.remove(POD, "search", name)
    gone = FAILED | {"reason": "DeadlineExceeded"}
    world.change(JOB, "search", NAME, {"status": {"conditions": [gone]}})
    found = await seen(workloads, model)
    assert "typo:1, which cannot be pulled" in found.message


async def test_the_words_of_pods_that_a_failed_training_removes_are_remembered(started, workloads, world):
    model = await started("PyTorchJob")
    master, worker = world.start_pytorch_job("search", NAME)
    again = {"running": {"startedAt": AT}}
    status = {"containerStatuses": [ended(1, SAID, state="lastState") | {"restartCount": 1, "state": again}]}
    world.change(POD, "search", master, {"status": status})
    assert (await seen(workloads, model)).state == "Running", "the training-operator has not given up"
    for name in (master, worker):
        world.remove(POD, "search", name)
    condition = FAILED | {"reason": "PyTorchJobFailed", "message": "it has reached the specified backoff limit"}
    world.change(PYTORCH_JOB, "search", NAME, {"status": {"conditions": [condition]}})
    found = await seen(workloads, model)
    assert (found.state, found.exit_code, found.reason) == ("Failed", 1, "BadInput")
    assert found.message == "items: column title is missing"


async def test_without_any_pod_the_controllers_own_words_are_told(started, workloads, world):
    model = await started("PyTorchJob")
    condition = FAILED | {"reason": "PyTorchJobFailed", "message": "it has reached the specified backoff limit"}
    world.change(PYTORCH_JOB, "search", NAME, {"status": {"conditions": [condition]}})
    found = await seen(workloads, model)
    assert (found.reason, found.message) == ("PyTorchJobFailed", "it has reached the specified backoff limit")


@pytest.mark.parametrize(("backend", "kind"), [("Job", JOB), ("PyTorchJob", PYTORCH_JOB)])
async def test_a_stopped_attempt_runs_until_its_last_pod_is_gone(started, workloads, world, now, backend, kind):
    model = await started(backend)
    (name, *others) = (
        world.start_pytorch_job("search", NAME) if backend == "PyTorchJob" else [world.start_job("search", NAME)]
    )
    await workloads.stop(model, NAME)
    spec = world.object(kind, "search", NAME)["spec"]
    assert spec.get("runPolicy", spec)["suspend"] is True
    assert (await seen(workloads, model)).state == "Running", "it may still write"
    for other in others:
        world.remove(POD, "search", other)
    world.end_pod("search", name, 143)
    found = await seen(workloads, model)
    assert (found.state, found.reason, found.finished_at) == ("Failed", "Stopped", now[0])


async def test_a_stopped_attempt_with_a_pod_on_a_lost_node_is_over_after_a_while(started, workloads, world, now):
    model = await started()
    name = world.start_job("search", NAME)
    await workloads.stop(model, NAME)
    world.change(POD, "search", name, {"metadata": {"deletionTimestamp": rfc3339(now[0] + 30), "finalizers": ["x/y"]}})
    assert (await seen(workloads, model)).state == "Running"
    now[0] += 120
    assert (await seen(workloads, model)).state == "Failed"


async def test_an_attempt_that_was_not_stopped_runs_while_its_pod_is_on_a_lost_node(started, workloads, world, now):
    """That node may only be unreachable. `KubernetesSurroundings` tells of it."""
    model = await started()
    name = world.start_job("search", NAME)
    world.change(POD, "search", name, {"metadata": {"deletionTimestamp": rfc3339(now[0]), "finalizers": ["x/y"]}})
    now[0] += 3600
    assert (await seen(workloads, model)).state == "Running"


DEADLINE_S = 86_400  # of a training, by default


def overdue(world, now) -> bool:
    return is_overdue(world.object(PYTORCH_JOB, "search", NAME), now[0])


async def test_a_training_that_goes_on_long_after_its_deadline_is_overdue(started, world, now):
    await started("PyTorchJob")
    now[0] += 3600
    world.start_pytorch_job("search", NAME)
    now[0] += DEADLINE_S + 120
    assert not overdue(world, now), "its pods and the training-operator have their time"
    now[0] += 60
    assert overdue(world, now)
    world.finish_pytorch_job("search", NAME, 1)
    assert not overdue(world, now), "it has ended"


async def test_a_training_whose_pods_are_refused_is_overdue_since_it_was_made(started, world, now):
    """The training-operator gives it no start."""
    await started("PyTorchJob")
    now[0] += DEADLINE_S + 180
    assert overdue(world, now)


async def test_a_training_that_a_queue_holds_or_has_just_let_go_is_not_overdue(started, world, now):
    await started("PyTorchJob")
    world.start_pytorch_job("search", NAME)
    world.change(PYTORCH_JOB, "search", NAME, {"spec": {"runPolicy": {"suspend": True}}})
    now[0] += 7 * DEADLINE_S
    assert not overdue(world, now)
    held = {"type": "Suspended", "status": "True", "lastTransitionTime": rfc3339(now[0])}
    world.change(PYTORCH_JOB, "search", NAME, {"status": {"conditions": [held]}})
    world.change(PYTORCH_JOB, "search", NAME, {"spec": {"runPolicy": {"suspend": False}}})
    assert not overdue(world, now), "its start is the former one until the training-operator has looked"
    resumed = {"conditions": [{**held, "status": "False"}], "startTime": rfc3339(now[0])}
    world.change(PYTORCH_JOB, "search", NAME, {"status": resumed})
    now[0] += DEADLINE_S
    assert not overdue(world, now)
    now[0] += 180
    assert overdue(world, now)


async def test_a_training_that_a_queue_let_go_and_whose_pods_are_refused_is_overdue_since_then(started, world, now):
    """It never got a start, and would keep its place in the queue for ever."""
    await started("PyTorchJob")
    now[0] += 7 * DEADLINE_S
    resumed = {"type": "Suspended", "status": "False", "lastTransitionTime": rfc3339(now[0])}
    world.change(PYTORCH_JOB, "search", NAME, {"status": {"conditions": [resumed]}})
    now[0] += DEADLINE_S + 179
    assert not overdue(world, now)
    now[0] += 1
    assert overdue(world, now)


async def test_a_job_is_left_to_its_own_controller(started, world, now):
    await started()
    world.start_job("search", NAME)
    now[0] += 7 * DEADLINE_S
    assert not is_overdue(world.object(JOB, "search", NAME), now[0])


async def test_an_overdue_attempt_runs_until_it_is_stopped_and_its_pods_are_gone_and_then_counts_as_failed(
    started, workloads, world, now
):
    model = await started("PyTorchJob")
    pods = world.start_pytorch_job("search", NAME)
    now[0] += DEADLINE_S + 180
    assert (await seen(workloads, model)).state == "Running", "it may still write"
    await workloads.stop(model, NAME)
    assert (await seen(workloads, model)).state == "Running"
    for name in pods:
        world.remove(POD, "search", name)
    found = await seen(workloads, model)
    assert (found.state, found.reason, found.finished_at) == ("Failed", "DeadlineExceeded", now[0])
    assert found.message == "was stopped after its deadline"


async def test_the_kubelets_word_for_a_deadline_is_not_told_twice(started, workloads, world):
    model = await started("PyTorchJob")
    for name in world.start_pytorch_job("search", NAME):
        said = "Pod was active on the node longer than the specified deadline"
        over = {"phase": "Failed", "reason": "DeadlineExceeded", "message": said}
        world.change(POD, "search", name, {"status": over})
    condition = FAILED | {"message": "failed because it was active longer than specified deadline"}
    world.change(PYTORCH_JOB, "search", NAME, {"status": {"conditions": [condition]}})
    found = await seen(workloads, model)
    assert (found.reason, found.message) == ("DeadlineExceeded", "was stopped after its deadline")


FAILURE_TARGET = {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "was active"}


@pytest.fixture
async def failing(started, world, now) -> tuple[Any, str]:
    """An object whose training is past its deadline, and the pod that is asked to end: its Job waits for that."""
    model, name = await started(), world.start_job("search", NAME)
    conditions = [{**FAILURE_TARGET, "lastTransitionTime": rfc3339(now[0])}]
    world.change(JOB, "search", NAME, {"status": {"terminating": 1, "conditions": conditions}})
    world.change(POD, "search", name, {"metadata": {"deletionTimestamp": rfc3339(now[0] + 30), "finalizers": ["x/y"]}})
    return model, name


async def test_an_attempt_that_is_to_fail_runs_while_its_pod_may_end_in_good_order(failing, workloads, now):
    model, _ = failing
    now[0] += 85
    assert (await seen(workloads, model)).state == "Running"


async def test_an_attempt_that_is_to_fail_has_failed_when_its_pod_is_on_a_lost_node(failing, workloads, now):
    """Its Job never says Failed: that pod is being ended for ever."""
    model, _ = failing
    at = now[0]
    now[0] += 95
    found = await seen(workloads, model)
    assert (found.state, found.reason, found.finished_at) == ("Failed", "DeadlineExceeded", at)


async def test_an_attempt_that_is_to_fail_may_have_pods_that_are_not_heard_of_yet(failing, workloads, world, now):
    model, name = failing
    world.change(POD, "search", name, {"metadata": {"finalizers": None}})
    assert (await seen(workloads, model)).state == "Running"
    now[0] += 60
    assert (await seen(workloads, model)).state == "Failed"


async def test_an_attempt_that_is_to_succeed_runs_until_its_job_is_complete(started, workloads, world, now):
    model = await started()
    met = {"type": "SuccessCriteriaMet", "status": "True", "lastTransitionTime": rfc3339(now[0])}
    world.change(JOB, "search", NAME, {"status": {"conditions": [met]}})
    now[0] += 3600
    assert (await seen(workloads, model)).state == "Running"


async def test_what_waits_in_a_queue_is_stopped_for_good(started, workloads, world):
    """Kueue resumes a job that it has admitted; the deadline then ends it at once."""
    model = await started("PyTorchJob")
    await workloads.stop(model, NAME)
    job = world.object(PYTORCH_JOB, "search", NAME)
    assert job["metadata"]["labels"][QUEUE_LABEL] == "gpus"
    assert job["spec"]["runPolicy"] | {"suspend": True, "activeDeadlineSeconds": 1} == job["spec"]["runPolicy"]


async def test_an_attempt_that_ended_before_the_stop_was_seen_is_not_stopped(started, workloads, world):
    model = await started()
    world.hold_watches()
    world.finish_job("search", NAME)
    with pytest.raises(Stale):
        await workloads.stop(model, NAME)
    world.deliver()
    await workloads.stop(model, NAME)
    assert (await seen(workloads, model)).state == "Succeeded"
    assert STOPPED_ANNOTATION not in world.object(JOB, "search", NAME)["metadata"].get("annotations", {})


async def test_a_deleted_job_has_a_record_until_its_pods_are_gone_and_is_not_touched_again(started, workloads, world):
    model = await started()
    # What the API server does for a deletion in the foreground, until the garbage collector is done.
    world.change(JOB, "search", NAME, {"metadata": {"finalizers": ["foregroundDeletion"]}})
    await workloads.delete(model, NAME)
    before = list(world.requests)
    for act in (workloads.stop, workloads.delete):
        await act(model, NAME)
    assert world.requests == before
    assert (await seen(workloads, model)).state == "Running"
    world.change(JOB, "search", NAME, {"metadata": {"finalizers": None}})
    assert list(await workloads.observe(model)) == []


async def test_the_attempt_of_a_newer_operator_is_left_alone(started, workloads, world):
    model = await started()
    world.change(JOB, "search", NAME, {"metadata": {"labels": {"retrieval-operator.io/step": "distil"}}})
    assert list(await workloads.observe(model)) == []


async def test_a_name_that_a_former_object_still_holds_is_waited_for(started, workloads, work_of):
    model = await started()
    other = model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": "another"})})
    with pytest.raises(Retryable, match="waiting until it is removed"):
        await workloads.start(other, work_of(other)["train"])


async def test_a_name_that_somebody_else_has_is_refused(workloads, world, make, work_of):
    model = make()
    metadata = {"name": "feed-89abcdef-index-1", "namespace": "search"}
    world.put({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}})
    with pytest.raises(Rejected, match=r"Job search/feed-89abcdef-index-1 is taken by somebody else.*delete or rename"):
        await workloads.start(model, work_of(model)["index"])


async def test_a_job_of_ours_that_was_not_heard_of_is_waited_for(started, workloads, world, work_of):
    """Its creation's answer was lost, and the watch is behind."""
    world.hold_watches()
    model = await started()
    world.cache.remove(JOB, world.object(JOB, "search", NAME))
    with pytest.raises(Retryable, match="was not told of yet"):
        await workloads.start(model, work_of(model)["train"])


async def test_a_job_that_goes_while_one_looks_whose_it_is_makes_room(started, workloads, world, work_of, monkeypatch):
    model = await started()
    world.cache.remove(JOB, world.object(JOB, "search", NAME))

    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(world, "get", nothing)
    with pytest.raises(Retryable, match="was taken a moment ago"):
        await workloads.start(model, work_of(model)["train"])


DIGEST = "registry.example.com/trainer@sha256:0f"
PROXY = {"name": "istio-proxy", "imageID": "registry.example.com/proxy@sha256:1e"}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([], ""),
        ([pod(phase="Pending")], ""),
        ([pod({"name": "main", "imageID": ""}), pod({"name": "main", "imageID": DIGEST})], DIGEST),
        ([pod(PROXY, {"name": "main", "imageID": DIGEST})], DIGEST),
        ([pod(PROXY, {"name": "main", "imageID": ""})], ""),
    ],
    ids=["no pods", "none has started", "the first that has", "not what was put beside it", "nor while ours waits"],
)
def test_the_image_that_ran_is_known_by_its_digest(pods: list[dict[str, Any]], expected: str) -> None:
    assert image_digest(pods, "main") == expected


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
async def test_the_image_of_an_attempt_is_that_of_its_own_program(started, workloads, world, backend):
    model = await started(backend)
    (name, *_) = (
        world.start_pytorch_job("search", NAME) if backend == "PyTorchJob" else [world.start_job("search", NAME)]
    )
    (ours,) = world.object(POD, "search", name)["status"]["containerStatuses"]
    statuses = [PROXY, {**ours, "imageID": DIGEST}]
    world.change(POD, "search", name, {"status": {"containerStatuses": statuses}})
    assert (await seen(workloads, model)).image == DIGEST

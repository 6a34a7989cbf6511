"""What pods and InferenceServices in all their states mean for a stack."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.servers import Servers, lacking_since, read_servers
from retrieval_operator.api.types import rfc3339

NOW = 1_700_000_000
OLD, NEW = NOW - 3600, NOW - 5
BAD_INPUT = json.dumps({"reason": "BadInput", "message": "bundle b-1: weights.safetensors has another sha256"})
RUNNING = {"running": {"startedAt": rfc3339(OLD)}}
CRASHED = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason, "finishedAt": rfc3339(NOW)}}


def pod(
    state: dict[str, Any] | None = None,
    *,
    last: dict[str, Any] | None = None,
    restarts: int = 0,
    ready: bool = False,
    made: int = OLD,
    phase: str = "Running",
    going: bool = False,
    unscheduled: str = "",
) -> dict[str, Any]:
    """`state` None: the kubelet has not begun with it."""
    container = {"name": "c", "image": "server:1", "ready": ready, "restartCount": restarts, "state": state or {}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    if unscheduled:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unscheduled}
        conditions.append(scheduled)
    metadata = {"name": "feed-s1-0", "uid": "pod-1", "creationTimestamp": rfc3339(made)}
    if going:
        metadata["deletionTimestamp"] = rfc3339(NOW)
    statuses = [{**container, "lastState": last or {}}] if state else []
    return {"metadata": metadata, "status": {"phase": phase, "conditions": conditions, "containerStatuses": statuses}}


def service(reason: str = "", message: str = "", since: int = OLD) -> dict[str, Any]:
    """An InferenceService with this PredictorReady=False; none for an empty reason."""
    found = {"type": "PredictorReady", "status": "False", "reason": reason, "message": message}
    return {"status": {"conditions": [{**found, "lastTransitionTime": rfc3339(since)}] if reason else []}}


LOADING = pod(RUNNING)
READY = pod(RUNNING, ready=True)
NO_IMAGE = waits("ImagePullBackOff", 'Back-off pulling image "server:1"')
QUOTA = "pods is forbidden: exceeded quota: compute"


@pytest.mark.parametrize(
    ("pods", "kserve", "ready"),
    [
        pytest.param([], service(), 0, id="none yet"),
        pytest.param([LOADING], service("MinimumReplicasUnavailable", "no minimum"), 0, id="a long load"),
        pytest.param([LOADING], service("ProgressDeadlineExceeded", "timed out"), 0, id="a load of over 600 s"),
        pytest.param([READY, READY], service(), 2, id="two ready"),
        pytest.param([READY, LOADING], service(), 1, id="one ready, one loading"),
        pytest.param([READY, pod(RUNNING, ready=True, going=True)], service(), 1, id="one is going"),
        pytest.param([READY, pod(RUNNING, phase="Failed")], service(), 1, id="one was evicted"),
        pytest.param([READY, pod(CRASHED, last=ended(65, BAD_INPUT))], service(), 1, id="one fails beside a ready one"),
        pytest.param([LOADING, pod(CRASHED, last=ended(65, BAD_INPUT))], service(), 0, id="one fails, one loads"),
        pytest.param([pod(RUNNING, last=ended(75), restarts=2)], service(), 0, id="trouble that may pass"),
        pytest.param([pod(RUNNING, last=ended(137, reason="OOMKilled"), restarts=1)], service(), 0, id="one OOM"),
        pytest.param([pod(RUNNING, last=ended(1), restarts=9)], service(), 0, id="many ends in a long life, loading"),
        pytest.param([pod(NO_IMAGE)], service(), 0, id="an image that cannot be pulled for a moment"),
        pytest.param([pod(unscheduled="0/1 nodes are available")], service(), 0, id="no node has room yet"),
        pytest.param([pod(waits("ContainerCreating"))], service(), 0, id="a volume that is slow"),
        pytest.param([], service("FailedCreate", QUOTA, NEW), 0, id="a quota that may be freed in a moment"),
        pytest.param([LOADING], service("FailedCreate", QUOTA), 0, id="a quota with room for one"),
    ],
)
def test_these_stacks_have_not_failed(pods: list[Any], kserve: dict[str, Any], ready: int) -> None:
    found = read_servers(pods, kserve, NOW, {})
    assert (found.ready, found.failed) == (ready, "")


@pytest.mark.parametrize(
    ("pods", "kserve", "words"),
    [
        pytest.param(
            [pod(CRASHED, last=ended(65, BAD_INPUT), restarts=1, made=NEW)],
            service(),
            ["feed-s1-0", "exit code 65", "BadInput", "another sha256"],
            id="a final exit code at once",
        ),
        pytest.param(
            [pod(ended(2, "no such flag"))], service(), ["exit code 2", "no such flag"], id="not even restarted"
        ),
        pytest.param(
            [pod(CRASHED, last=ended(75, "line 1\nlast line"), restarts=4)],
            service(),
            ["exit code 75", "line 1 last line"],
            id="five starts",
        ),
        pytest.param(
            [pod(CRASHED, last=ended(137, reason="OOMKilled"), restarts=4)],
            service(),
            ["OOMKilled", "memory"],
            id="too little memory",
        ),
        pytest.param([pod(CRASHED, last=ended(1), restarts=9)], service(), ["it said nothing"], id="without a word"),
        pytest.param([pod(NO_IMAGE, made=NEW)], service(), ["server:1", "cannot be pulled"], id="no image"),
        pytest.param([pod(waits("ErrImagePull"))], service(), ["server:1"], id="no image, between two tries"),
        pytest.param(
            [pod(waits("CreateContainerConfigError", 'secret "store" not found'))],
            service(),
            ['secret "store" not found'],
            id="no secret",
        ),
        pytest.param([], service("FailedCreate", QUOTA), ["exceeded quota"], id="a quota"),
        pytest.param(
            [],
            service("FailedCreate", 'violates PodSecurity "restricted:latest"'),
            ["PodSecurity"],
            id="PodSecurity",
        ),
        pytest.param([], service("ReconcileFailed", "must be no more than 63 characters"), ["63"], id="no Deployment"),
    ],
)
def test_these_stacks_have_failed_and_say_why(pods: list[Any], kserve: dict[str, Any], words: list[str]) -> None:
    found = read_servers(pods, kserve, NOW, {"pod-1": NOW - 60})
    assert found.ready == 0
    assert not [word for word in words if word not in found.failed], found.failed
    assert len(found.failed) <= 512


@pytest.mark.parametrize(
    ("pods", "kserve", "words"),
    [
        pytest.param([LOADING], service(), "", id="loading"),
        pytest.param([pod(unscheduled="0/1 nodes")], service(), "0/1 nodes", id="no room"),
        pytest.param([pod(RUNNING, last=ended(75, "no bucket"), restarts=2)], service(), "no bucket", id="restarts"),
        pytest.param([pod(NO_IMAGE, made=NEW)], service(), "server:1", id="an image"),
        pytest.param([READY, pod(NO_IMAGE)], service(), "server:1", id="the image of a second"),
        pytest.param([READY], service("FailedCreate", QUOTA), "exceeded quota", id="no room for a second"),
    ],
)
def test_what_is_waited_for_is_said_and_does_not_change_with_every_try(
    pods: list[Any], kserve: dict[str, Any], words: str
) -> None:
    found = read_servers(pods, kserve, NOW, {})
    assert words in found.waits_for
    assert bool(found.waits_for) is bool(words)
    again = json.loads(json.dumps(pods).replace('"restartCount": 2', '"restartCount": 3'))
    assert read_servers(again, kserve, NOW + 7, {}).waits_for == found.waits_for


def test_a_lack_is_as_old_as_it_is_seen_whatever_it_is_called_and_forgotten_when_it_goes() -> None:
    first = lacking_since([pod(waits("ErrImagePull")), pod(RUNNING)], {}, NOW)
    assert first == {"pod-1": NOW}
    assert lacking_since([pod(NO_IMAGE)], first, NOW + 30) == first
    assert lacking_since([pod(RUNNING)], first, NOW + 40) == {}
    assert lacking_since([], first, NOW + 40) == {}


def test_a_pod_that_waited_for_a_node_has_its_minute_for_the_image_after_that() -> None:
    without_node = pod(unscheduled="0/1 nodes are available")
    since = lacking_since([without_node], {}, NOW)
    assert lacking_since([pod(NO_IMAGE)], since, NOW + 600) == {"pod-1": NOW + 600}


def test_nothing_at_all_is_nothing() -> None:
    assert read_servers([], {}, NOW, {}) == Servers(0)

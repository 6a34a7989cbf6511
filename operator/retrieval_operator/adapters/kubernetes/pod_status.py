"""What the pods of a workload say about themselves: how they failed, what those lack that have not started. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from retrieval_operator.adapters.kubernetes.children import seconds
from retrieval_operator.adapters.kubernetes.kinds import Object
from retrieval_operator.api.constants import FINAL_EXIT_CODES, MESSAGE_MAX_CHARS, ExitCode
from retrieval_operator.api.text import printable

OUT_OF_MEMORY = "OOMKilled"  # the kubelet's word
# A pod that should be gone since then runs on a node that nobody hears of. A gut feeling.
LOST_AFTER_S = 60
# What the kubelet calls a container that waits in vain.
_IMAGE_WAITS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONTAINER_WAITS = frozenset({"CreateContainerError", "RunContainerError"})
_FINAL, _SAID_WHY, _TAKEN_AWAY, _CRASHED = range(4)
_SENTENCE_MAX_CHARS = 512  # what others said is part of it; several sentences may have to share a status message
_REASONS = {code.value: code.reason for code in ExitCode}
_FINAL_REASONS = frozenset(code.reason for code in FINAL_EXIT_CODES)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a container, or a pod as a whole, failed. `at` in seconds since the epoch.

    `exit_code` is None when the cluster took the pod away. `reason` and `message` are the program's own when it said
    something, else what its exit code or the cluster says, and the end of the log. `rank` of several, the lowest first:
    a program for which another try is of no use, whatever was mended by one before; one that said why; a pod that was
    taken away; a crash, which may be only what happens to the peers of those.
    """

    exit_code: int | None
    reason: str
    message: str
    at: int = 0
    rank: int = _CRASHED


@dataclass(frozen=True)
class Lack:
    """What keeps a pod from starting: which dependency of the object, and a sentence on one line with the remedy.

    Without counts, times and the kubelet's turns of phrase: it is repeated in a status, which is written when it
    changes.
    """

    dependency: Literal["program", "secret", "quota"]
    message: str


def first_lack(pods: Iterable[Object]) -> Lack | None:
    """What the first pod lacks that lacks something; None when all of them run, ran, or are only being started."""
    return next((lack for lack in map(_lack, pods) if lack is not None), None)


def first_failure(pods: Iterable[Object]) -> Failure | None:
    """The first of those that say most about why the workload failed; None when none failed."""
    found = [failure for pod in pods for failure in _failures(pod)]
    return min(found, key=lambda failure: (failure.rank, failure.at), default=None)


def is_alive(pod: Object, now: int, patience_s: int) -> bool:
    """Whether its containers may still run. One that should be gone since `patience_s` is: its node is lost."""
    return not (_is_over(pod) or _is_late(pod, now, patience_s))


def first_lost(pods: Iterable[Object], now: int) -> str:
    """On the first pod that nothing can end any more, a sentence on one line with the remedy; "" when there is none."""
    return next((_lost(pod) for pod in pods if _is_late(pod, now, LOST_AFTER_S) and not _is_over(pod)), "")


def condition(obj: Object, kind: str) -> Object:
    """The condition of this type, {} when there is none."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})


def one_line(sentence: str) -> str:
    """Without line breaks, and short enough for a status."""
    return printable(" ".join(sentence.split()))[:_SENTENCE_MAX_CHARS]


def containers(pod: Object) -> Sequence[Object]:
    """The statuses of its containers, those that go first included."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def image_digest(pods: Iterable[Object], container: str) -> str:
    """What the first container of this name runs that has started, as its node names it: by digest. "" for none."""
    statuses = (status for pod in pods for status in pod.get("status", {}).get("containerStatuses", []))
    found = (status.get("imageID", "") for status in statuses if status["name"] == container)
    return next(filter(None, found), "")


def _lack(pod: Object) -> Lack | None:
    name = pod["metadata"]["name"]
    for container in containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        reason, image = waiting.get("reason", ""), container.get("image", "")
        if reason in _IMAGE_WAITS:
            remedy = "push it, correct its name, or name its credentials in pod.imagePullSecrets"
            return Lack("program", one_line(f"pod {name} waits for image {image}, which cannot be pulled; {remedy}"))
        if reason == "CreateContainerConfigError":
            said = waiting.get("message", reason)
            return Lack("secret", one_line(f"pod {name} cannot start: {said}; create it or correct its name"))
        if reason in _CONTAINER_WAITS:
            return Lack("program", one_line(f"pod {name} cannot start: {reason}: {waiting.get('message', '')}"))
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return Lack("quota", one_line(f"pod {name} waits for a node: {scheduled.get('message', '')}"))
    return None


def _is_over(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _is_late(pod: Object, now: int, patience_s: int) -> bool:
    """It should be gone since `patience_s`; its deletionTimestamp is when its grace ends."""
    deadline = pod["metadata"].get("deletionTimestamp")
    return deadline is not None and now - seconds(deadline) >= patience_s


def _lost(pod: Object) -> str:
    """Its node is known by its address only: of pods the cache keeps how they are, not where they were put."""
    name, host = pod["metadata"]["name"], pod.get("status", {}).get("hostIP", "")
    node = f"its node ({host} in kubectl get nodes -o wide)" if host else "its node"
    return one_line(
        f"pod {name} should be gone, but {node} says nothing of it, and nothing takes its place meanwhile; delete that "
        f"node, or if it is surely off: kubectl --namespace {pod['metadata']['namespace']} delete pod {name} --force"
    )


def _failures(pod: Object) -> Iterator[Failure]:
    status = pod.get("status", {})
    if status.get("phase") == "Failed" and (status.get("reason") or condition(pod, "DisruptionTarget")):
        yield _loss(pod)
        return
    for container in containers(pod):
        # The state before counts, too: a container that was started again failed then.
        for state in ("lastState", "state"):
            ended = container.get(state, {}).get("terminated")
            if ended and ended.get("exitCode"):
                yield container_failure(ended)


def container_failure(ended: Object) -> Failure:
    """The end of a container, as `state.terminated` has it."""
    code, word = int(ended["exitCode"]), ended.get("reason", "")
    text = str(ended.get("message", "")).strip()
    said_reason, said = _said(text)
    if word == OUT_OF_MEMORY:
        reason, message = word, said or "it needed more memory than its limit allows"
    else:
        reason, message = said_reason or _REASONS.get(code, "Crashed"), said or text[-MESSAGE_MAX_CHARS:]
    return Failure(
        at=seconds(ended["finishedAt"]) if ended.get("finishedAt") else 0,
        exit_code=code,
        reason=reason,
        message=message[:MESSAGE_MAX_CHARS],
        rank=_rank(code, reason),
    )


def _rank(code: int, reason: str) -> int:
    """By its words and its exit code: torchrun turns every code into 1, and not every program has words."""
    if reason in _FINAL_REASONS or code in FINAL_EXIT_CODES:
        return _FINAL
    return _CRASHED if reason == "Crashed" else _SAID_WHY


def _loss(pod: Object) -> Failure:
    """A pod that failed as a whole: evicted, preempted, its node gone."""
    status, disruption = pod["status"], condition(pod, "DisruptionTarget")
    reason = status.get("reason") or disruption.get("reason") or "Lost"
    message = status.get("message") or disruption.get("message") or "the cluster took the pod away"
    when = disruption.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    return Failure(
        at=seconds(when), exit_code=None, reason=reason, message=message[:MESSAGE_MAX_CHARS], rank=_TAKEN_AWAY
    )


def _said(text: str) -> tuple[str, str]:
    """Reason and message of a termination message (docs/contracts.md section 2); "" for what it does not say."""
    try:
        document = json.loads(text)
        return str(document.get("reason", "")), str(document.get("message", ""))
    except (ValueError, AttributeError):
        return "", ""

"""What the servers of a stack say about themselves: the statuses of its pods and of its InferenceService, read. Pure.

KServe's own Ready is not asked: it is not generation-aware, and False during a long load, which is no failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.children import seconds
from retrieval_operator.adapters.kubernetes.kinds import POD, Object
from retrieval_operator.adapters.kubernetes.pod_status import (
    condition,
    container_failure,
    containers,
    first_lack,
    one_line,
)
from retrieval_operator.api.constants import FINAL_EXIT_CODES, LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel

# As often as on one machine: five starts. The kubelet's back-off makes them last about 150 s.
_RESTARTS_LIMIT = 4
# A registry that stumbles, a Secret that is made a moment later, a quota that is freed by what just ends: the kubelet
# and the ReplicaSet try again within it (after 10 s and 20 s). A gut feeling.
_GRACE_S = 60
# Reasons of PredictorReady: the ReplicaSet may not make pods (quota, PodSecurity), or KServe not the Deployment.
_REFUSED = frozenset({"FailedCreate", "ReconcileFailed"})
_WORDS_MAX_CHARS = 256  # of a program's last words: they share a sentence with how it ended


def pods_by_stack(cache: Cache, model: RetrievalModel) -> Mapping[str, Sequence[Object]]:
    """The pods of the object's servers; none for a stack without any.

    Their owner is a ReplicaSet, which is not watched, so they are found as Services find them.
    """
    found: dict[str, list[Object]] = defaultdict(list)
    for pod in cache.labelled(POD, model.metadata.namespace, model.metadata.name):
        found[pod["metadata"]["labels"].get(LABEL_STACK, "")].append(pod)
    return found


@dataclass(frozen=True)
class Servers:
    """`failed` and `waits_for` are sentences as of StackObserved, "" for none."""

    ready: int
    failed: str = ""
    waits_for: str = ""


def lacking_since(pods: Iterable[Object], before: Mapping[str, int], now: int) -> dict[str, int]:
    """Since when each pod that lacks something is seen to lack it, by its UID; `before` is what was known so far.

    Whatever it lacks: the kubelet calls one lack by several names in turn. One without a node waits for something else.
    """
    lacking = (pod["metadata"]["uid"] for pod in pods if containers(pod) and first_lack([pod]) is not None)
    return {uid: before.get(uid, now) for uid in lacking}


def read_servers(pods: Iterable[Object], inference_service: Object, now: int, lacking: Mapping[str, int]) -> Servers:
    """`pods` are the stack's; those that are going or gone do not count. `now` in seconds since the epoch.

    `lacking` is what `lacking_since` found; a pod that is not in it lacks what it lacks since now.
    """
    current = [pod for pod in pods if _counts(pod)]
    waiting = [pod for pod in current if condition(pod, "Ready").get("status") != "True"]
    ready = len(current) - len(waiting)
    refusal, refused_since = _refusal(inference_service)
    waits_for = refusal or _waits_for(waiting)
    if ready:
        return Servers(ready, waits_for=waits_for)
    started = [pod for pod in waiting if containers(pod)]
    failures = [_failure(pod, now, lacking) for pod in started]
    if failures and all(failures):  # one of several may be on a bad node, while the others only load
        return Servers(0, failed=failures[0], waits_for=waits_for)
    refused = refusal if not started and now - refused_since >= _GRACE_S else ""
    return Servers(0, failed=refused, waits_for=waits_for)


def _counts(pod: Object) -> bool:
    """A pod that is being deleted, or ended as a whole (evicted, its node lost), has or gets a successor."""
    is_over = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
    return "deletionTimestamp" not in pod["metadata"] and not is_over


def _failure(pod: Object, now: int, lacking: Mapping[str, int]) -> str:
    """Why the pod cannot become ready by itself; "" while it may. One without a node may: nodes come and go."""
    for container in containers(pod):
        if container.get("state", {}).get("running"):
            continue  # it loads again; how often it ended in all its life says nothing about this time
        ended = _last_end(container)
        is_final = ended.get("exitCode") in FINAL_EXIT_CODES
        if ended and (is_final or container.get("restartCount", 0) >= _RESTARTS_LIMIT):
            return _end(pod, ended)
    lack = first_lack([pod])
    if lack is None:
        return ""
    # Not the pod's age: one that served for days may be started again, and find its registry busy for a moment.
    return lack.message if now - lacking.get(pod["metadata"]["uid"], now) >= _GRACE_S else ""


def _waits_for(waiting: Sequence[Object]) -> str:
    """What the first one lacks that lacks something, else how the first one ended that is started again."""
    lack = first_lack(waiting)
    if lack is not None:
        return lack.message
    ends = ((pod, _last_end(container)) for pod in waiting for container in containers(pod))
    return next((f"{_end(pod, ended)}; it is started again" for pod, ended in ends if ended), "")


def _refusal(inference_service: Object) -> tuple[str, int]:
    """Why no pods are made, and since when; ("", 0) when they are."""
    found = condition(inference_service, "PredictorReady")
    if found.get("status") != "False" or found.get("reason") not in _REFUSED:
        return "", 0
    return one_line(f"no server can be started: {found.get('message', '')}"), seconds(found["lastTransitionTime"])


def _last_end(container: Object) -> Object:
    """How the container last ended, {} when it did not."""
    ends = (container.get(state, {}).get("terminated") for state in ("state", "lastState"))
    return next((end for end in ends if end), {})


def _end(pod: Object, ended: Object) -> str:
    """With the words of its termination message, else the last of its log."""
    failure = container_failure(ended)
    words = failure.message[-_WORDS_MAX_CHARS:] or "it said nothing"
    how = f"exit code {failure.exit_code} ({failure.reason})"
    return one_line(f"the server in pod {pod['metadata']['name']} ended with {how}: {words}")

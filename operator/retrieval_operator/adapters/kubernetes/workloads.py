"""Workloads in a cluster: each attempt is one Job or PyTorchJob, created once, read back from the cache.

The record of an attempt is the Job itself: no time to live removes it, `delete` does. `stop` suspends it, which ends
its pods and leaves the record, and marks it as stopped; nothing ever resumes it.

An attempt counts as over when none of its pods can run any more: two attempts never write to the same directory. So one
that is over its deadline (`is_overdue`) runs until it is stopped; then it has failed for that reason. Of a node that
nobody hears of any more no one can know: a stopped attempt there is given up LOST_AFTER_S after its pods should be
gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retrieval_operator.adapters.kubernetes import children
from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.children import seconds
from retrieval_operator.adapters.kubernetes.jobs import attempt_labels, job
from retrieval_operator.adapters.kubernetes.kinds import JOB, POD, PYTORCH_JOB, Kind, Object
from retrieval_operator.adapters.kubernetes.pod_status import (
    LOST_AFTER_S,
    OUT_OF_MEMORY,
    Failure,
    condition,
    first_failure,
    first_lack,
    image_digest,
    is_alive,
)
from retrieval_operator.adapters.kubernetes.pods import template
from retrieval_operator.adapters.kubernetes.programs import Reporting, program
from retrieval_operator.adapters.kubernetes.training import CONTAINER, pytorch_job
from retrieval_operator.api.constants import GROUP, LABEL_ATTEMPT, LABEL_KEY, LABEL_STEP, MESSAGE_MAX_CHARS
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.pod import Resources
from retrieval_operator.api.types import rfc3339
from retrieval_operator.domain.attempts import STOPPED
from retrieval_operator.domain.commands import section, section_name
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec, WorkloadStep

STOPPED_ANNOTATION = f"{GROUP}/stopped-at"
OVERDUE_ANNOTATION = f"{GROUP}/stopped-overdue"  # "true" of one that was over its deadline when it was stopped
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# Enough for a trainer to finish its step and write a checkpoint; Kubernetes' own default is 30. A gut feeling.
_TRAINING_GRACE_S = 60
# The pods of a training have 60 s more than their job (`training`), and 60 s to end (above): what goes on for longer
# nobody else ends.
_OVERDUE_AFTER_S = 180
_DEADLINE_EXCEEDED = "DeadlineExceeded"  # Kubernetes' word, of Jobs and of pods
_HEARD_KEPT = 1024  # more failing attempts at once than any cluster has
# Of a removal of files, whatever the index build beside it needs. Seen: 120 MB with pyarrow and fsspec loaded. All four
# are there, so that a quota on any of them takes it.
_REMOVAL = Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"})


@dataclass(frozen=True)
class _Ended:
    """An end as the Job's own conditions tell it; `reason` and `message` are the controller's.

    `is_settled` False: it will fail, but its controller waits for pods, of which we may not have heard yet.
    """

    succeeded: bool
    at: int
    reason: str = ""
    message: str = ""
    is_settled: bool = True

    def may_have_pods(self, now: int) -> bool:
        return not self.is_settled and now - self.at < LOST_AFTER_S


class KubernetesWorkloads:
    """Fills the port Workloads. `clock` gives seconds since the epoch.

    `images` by component (trainer, indexer, data), `reporting` by registry connection: the operator's configuration.
    """

    def __init__(
        self,
        api: KubernetesApi,
        cache: Cache,
        clock: Callable[[], int],
        *,
        images: Mapping[str, str],
        reporting: Mapping[str, Reporting],
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._images = images
        self._reporting = reporting
        # What failed in attempts that still try, by UID: when a job gives up, its pods may go before they are read.
        self._heard: dict[str, Failure] = {}

    async def observe(self, model: RetrievalModel) -> Sequence[WorkloadObserved]:
        return [self._observed(model, obj) for _, obj in self._attempts(model)]

    async def start(self, model: RetrievalModel, workload: WorkloadSpec) -> None:
        await children.create_once(self._api, self._cache, model, self.manifest(model, workload))

    async def stop(self, model: RetrievalModel, name: str) -> None:
        for kind, obj in self._attempts(model, name):
            if not (has_ended(obj) or children.is_going(obj)):
                await self._api.patch(
                    kind,
                    model.metadata.namespace,
                    name,
                    stop_patch(kind, obj, self._clock()),
                    resource_version=obj["metadata"]["resourceVersion"],  # it may have ended meanwhile
                )

    async def delete(self, model: RetrievalModel, name: str) -> None:
        """In the foreground: the record stays until its pods are gone, so that nothing follows while they may write."""
        for kind, obj in self._attempts(model, name):
            if not children.is_going(obj):
                uid = obj["metadata"]["uid"]
                await self._api.delete(kind, model.metadata.namespace, name, uid=uid, foreground=True)

    def manifest(self, model: RetrievalModel, workload: WorkloadSpec) -> Object:
        """The Job or PyTorchJob of an attempt. Raises Rejected for what cannot be run with this configuration."""
        part = section(model, workload.step)
        is_training = workload.step is WorkloadStep.TRAIN
        is_distributed = is_training and needs_pytorch_job(model)
        launcher: tuple[str, ...] = ()
        if is_distributed:
            launcher = ("torchrun",)
        elif workload.processes > 1:
            launcher = ("torchrun", "--standalone", f"--nproc-per-node={workload.processes}")
        run = program(
            model,
            workload,
            container=CONTAINER if is_distributed else workload.program,
            images=self._images,
            reporting=self._reporting,
            launcher=launcher,
        )
        resources = _REMOVAL if workload.step is WorkloadStep.COLLECT else part.resources
        pods = template(run, model.spec.storage, part.pod, resources, labels=attempt_labels(model, workload))
        queue = {QUEUE_LABEL: model.spec.training.queue_name} if is_training and model.spec.training.queue_name else {}
        if is_training:
            pods["spec"]["terminationGracePeriodSeconds"] = _TRAINING_GRACE_S
        return (pytorch_job if is_distributed else job)(model, workload, pods, queue)

    def _attempts(self, model: RetrievalModel, name: str = "") -> Iterator[tuple[Kind, Object]]:
        """The object's attempts; with `name` only that one."""
        for kind in (JOB, PYTORCH_JOB):
            for obj in self._cache.children(kind, model.metadata.namespace, model.metadata.uid):
                if name in ("", obj["metadata"]["name"]) and _is_ours(obj):
                    yield kind, obj

    def _observed(self, model: RetrievalModel, obj: Object) -> WorkloadObserved:
        metadata, labels = obj["metadata"], obj["metadata"]["labels"]
        now = self._clock()
        pods = self._cache.children(POD, metadata["namespace"], metadata["uid"])
        failure = self._failure(metadata["uid"], pods)
        seen = WorkloadObserved(
            name=metadata["name"],
            step=WorkloadStep(labels[LABEL_STEP]),
            key=labels[LABEL_KEY],
            attempt=int(labels[LABEL_ATTEMPT]),
            state="Running",
            started_at=seconds(obj.get("status", {}).get("startTime") or metadata["creationTimestamp"]),
            image=image_digest(pods, _container(obj)),
            overdue=is_overdue(obj, now),
        )
        ended, stopped_at = _ended(obj), _stopped_at(obj)
        if ended is not None and ended.succeeded:
            return replace(seen, state="Succeeded", exit_code=0, finished_at=ended.at)
        if not has_ended(obj) or any(is_alive(pod, now, LOST_AFTER_S) for pod in pods):
            return seen
        if ended is not None and ended.may_have_pods(now):
            return seen
        if stopped_at is not None and OVERDUE_ANNOTATION in obj["metadata"]["annotations"]:
            return _failed(model, seen, _Ended(succeeded=False, at=stopped_at, reason=_DEADLINE_EXCEEDED), failure)
        if stopped_at is not None:
            return replace(seen, state="Failed", reason=STOPPED, finished_at=stopped_at)
        assert ended is not None, "else it was stopped, or runs"
        return _failed(model, seen, ended, failure)

    def _failure(self, uid: str, pods: Sequence[Object]) -> Failure | None:
        """What failed first, or else keeps it from starting; of pods that are gone, what was seen last."""
        failure = first_failure(pods)
        lack = first_lack(pods) if failure is None else None
        if lack is not None:
            failure = Failure(exit_code=None, reason="NotStarted", message=lack.message)
        if pods:
            self._heard.pop(uid, None)
        if failure is not None:
            self._heard[uid] = failure
        while len(self._heard) > _HEARD_KEPT:
            del self._heard[next(iter(self._heard))]
        return self._heard.get(uid)


def needs_pytorch_job(model: RetrievalModel) -> bool:
    """Whether trainings of this object are PyTorchJobs. An imported bundle is only verified: one pod does."""
    return model.spec.training.backend == "PyTorchJob" and model.spec.model.bundle_uri is None


def _is_ours(obj: Object) -> bool:
    """Whether it is an attempt as this version makes them: a newer one may know steps that this one does not."""
    labels = obj["metadata"].get("labels", {})
    known = labels.get(LABEL_STEP) in set(WorkloadStep) and LABEL_KEY in labels
    return known and str(labels.get(LABEL_ATTEMPT, "")).isdecimal()


def has_ended(obj: Object) -> bool:
    """Whether an attempt has ended or was stopped."""
    return _ended(obj) is not None or _stopped_at(obj) is not None


def is_overdue(obj: Object, now: int) -> bool:
    """Whether an attempt goes on that was to end long ago. Only a PyTorchJob: a Job's controller keeps its deadline.

    The training-operator gives a job its start only with its last pod, so one whose pods are refused never has any;
    then its creation counts, or when it was resumed. Not while it is suspended, as by Kueue, nor until the
    training-operator has seen that it is resumed: so long its start is an old one.
    """
    if obj["kind"] != PYTORCH_JOB.kind or has_ended(obj) or obj["spec"]["runPolicy"].get("suspend"):
        return False
    suspended = condition(obj, "Suspended")
    resumed = suspended.get("lastTransitionTime") or obj["metadata"]["creationTimestamp"]
    start = obj.get("status", {}).get("startTime") or resumed
    limit = obj["spec"]["runPolicy"].get("activeDeadlineSeconds")
    if suspended.get("status") == "True" or limit is None:
        return False
    return now >= seconds(start) + int(limit) + _OVERDUE_AFTER_S


def _ended(obj: Object) -> _Ended | None:
    """None while it runs. Jobs say Complete, PyTorchJobs Succeeded; both say Failed.

    A Job says FailureTarget first, and Failed when its last pod is gone: with a pod on a lost node, never.
    """
    for kind in ("Complete", "Succeeded", "Failed", "FailureTarget"):
        found = condition(obj, kind)
        if found.get("status") == "True":
            at = obj["status"].get("completionTime") or found["lastTransitionTime"]
            return _Ended(
                succeeded=kind in ("Complete", "Succeeded"),
                at=seconds(at),
                reason=found.get("reason", ""),
                message=found.get("message", ""),
                is_settled=kind != "FailureTarget",
            )
    return None


def _container(attempt: Object) -> str:
    """The container that runs our program: others may have been put beside it, such as a mesh's proxy."""
    if attempt["kind"] == PYTORCH_JOB.kind:
        return CONTAINER
    return str(attempt["spec"]["template"]["spec"]["containers"][0]["name"])


def _stopped_at(obj: Object) -> int | None:
    text = obj["metadata"].get("annotations", {}).get(STOPPED_ANNOTATION)
    return seconds(text) if text else None


def stop_patch(kind: Kind, obj: Object, now: int) -> Object:
    """Suspend it. Kueue resumes what it has admitted, so what is in a queue also gets a deadline that is over at once.

    Then the quota is free again, too.
    """
    policy: Object = {"suspend": True}
    if QUEUE_LABEL in obj["metadata"].get("labels", {}):
        policy["activeDeadlineSeconds"] = 1
    spec = {"runPolicy": policy} if kind is PYTORCH_JOB else policy
    annotations = {STOPPED_ANNOTATION: rfc3339(now), **({OVERDUE_ANNOTATION: "true"} if is_overdue(obj, now) else {})}
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _failed(model: RetrievalModel, seen: WorkloadObserved, ended: _Ended, failure: Failure | None) -> WorkloadObserved:
    """The program's words, else the controller's. A deadline goes before what the program said when it was ended."""
    failed = replace(seen, state="Failed", finished_at=ended.at)
    if ended.reason == _DEADLINE_EXCEEDED or "active longer than specified deadline" in ended.message:
        # Of a pod that was ended for its own deadline the kubelet says only that.
        is_more = failure is not None and failure.reason != _DEADLINE_EXCEEDED
        said = f"; before that: {failure.message}" if failure is not None and is_more else ""
        message = f"was stopped after its deadline{said}"
        return replace(failed, reason=_DEADLINE_EXCEEDED, message=message[:MESSAGE_MAX_CHARS])
    if failure is None:
        return replace(failed, reason=ended.reason, message=ended.message[:MESSAGE_MAX_CHARS])
    message = failure.message
    if failure.reason == OUT_OF_MEMORY:
        message = f"{message}; raise spec.{section_name(seen.step)}.resources.limits.memory"
    return replace(failed, exit_code=failure.exit_code, reason=failure.reason, message=message[:MESSAGE_MAX_CHARS])

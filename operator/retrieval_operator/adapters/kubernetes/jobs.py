"""Work as batch/v1 Jobs: one pod, or an Indexed Job with a pod per shard.

The operator counts attempts and waits between them (domain/attempts.py), so a Job is one attempt: a pod that fails ends
it, a pod that the cluster took away (a drained node, preemption) does not.
"""

from __future__ import annotations

from collections.abc import Mapping

from retrieval_operator.adapters.kubernetes import children
from retrieval_operator.adapters.kubernetes.kinds import JOB, Object
from retrieval_operator.api.constants import FINAL_EXIT_CODES, LABEL_ATTEMPT, LABEL_KEY, LABEL_STEP
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.workloads import WorkloadSpec

# How often one shard may fail before the attempt has failed; the other shards go on meanwhile. A gut feeling.
_RETRIES_PER_SHARD = 2


def attempt_labels(model: RetrievalModel, workload: WorkloadSpec) -> dict[str, str]:
    """By these an attempt and its pods are known again."""
    attempt = {LABEL_STEP: workload.step.value, LABEL_KEY: workload.key, LABEL_ATTEMPT: str(workload.attempt)}
    return dict(children.metadata(model, workload.name, attempt)["labels"])


def job(
    model: RetrievalModel, workload: WorkloadSpec, template: Object, more_labels: Mapping[str, str] | None = None
) -> Object:
    """The Job of an attempt. `more_labels` are the Job's own, not its pods'."""
    rules: list[Object] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    if workload.shards > 1:
        codes = {"operator": "In", "values": sorted(map(int, FINAL_EXIT_CODES))}
        rules.append({"action": "FailJob", "onExitCodes": codes})
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": children.metadata(model, workload.name, {**attempt_labels(model, workload), **(more_labels or {})}),
        "spec": {
            "activeDeadlineSeconds": workload.deadline_s,
            **_pods(workload),
            "podFailurePolicy": {"rules": rules},
            # Two pods must never write to the same directory; a policy for failures asks for it anyway.
            "podReplacementPolicy": "Failed",
            "template": {**template, "spec": {**template["spec"], "restartPolicy": "Never"}},
        },
    }


def _pods(workload: WorkloadSpec) -> Object:
    if workload.shards == 1:
        return {"backoffLimit": 0}
    return {
        "completionMode": "Indexed",
        "completions": workload.shards,
        "parallelism": workload.shards,
        "backoffLimitPerIndex": _RETRIES_PER_SHARD,
    }

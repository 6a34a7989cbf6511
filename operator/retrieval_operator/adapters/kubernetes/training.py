"""A training as a PyTorchJob: the Kubeflow training-operator 1.9 makes its pods, torchrun in each makes the processes.

The training-operator sets PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT, which
torchrun reads instead of flags. What its fields do was read in its source:

    restartPolicy OnFailure   the kubelet starts a container again in its pod. ExitCode would take the code 1, with
                              which the peers of a killed pod end, for final.
    backoffLimit              restarts of all running pods, added up; unset: for ever. Then our next attempt follows.
    cleanPodPolicy Running    with None the workers of a finished job may hang on their accelerators.
    activeDeadlineSeconds     looked at when the job or a pod of it changes, and every 10 h: what should wake it in time
                              is a queue that nobody empties (1.9.4, https://github.com/kubeflow/trainer/issues/3358).

So the pods have the deadline, too: the kubelet ends one that is over it, by itself and with its grace, which is such a
change. The job's own deadline is over by then, so it fails with that reason, before a restart is thought of. What that
cannot end is a job whose pods never ran, or were made anew: `workloads.is_overdue`.
"""

from __future__ import annotations

from collections.abc import Mapping

from retrieval_operator.adapters.kubernetes import children
from retrieval_operator.adapters.kubernetes.jobs import attempt_labels
from retrieval_operator.adapters.kubernetes.kinds import PYTORCH_JOB, Object
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.workloads import WorkloadSpec

CONTAINER = "pytorch"  # the training-operator looks for this name
# When one pod fails, all restart: so many times within one attempt. A gut feeling; a wrong input costs them, too.
_RESTARTS = 2
# A pod's deadline comes after its job's, or the pod would be restarted, with a new one. The job's clock starts when its
# last pod is made, a pod's when its node takes it in, which for the first of many is earlier; and clocks of nodes
# differ. A gut feeling.
_AFTER_S = 60


def pytorch_job(
    model: RetrievalModel, workload: WorkloadSpec, template: Object, more_labels: Mapping[str, str] | None = None
) -> Object:
    """The PyTorchJob of an attempt: a master, and the other nodes as workers."""
    deadline = {"activeDeadlineSeconds": workload.deadline_s + _AFTER_S}
    template = {**template, "spec": {**template["spec"], **deadline}}
    replicas: Object = {"Master": _replicas(1, template)}
    if workload.nodes > 1:
        replicas["Worker"] = _replicas(workload.nodes - 1, template)
    return {
        "apiVersion": PYTORCH_JOB.api_version,
        "kind": PYTORCH_JOB.kind,
        "metadata": children.metadata(model, workload.name, {**attempt_labels(model, workload), **(more_labels or {})}),
        "spec": {
            "nprocPerNode": str(workload.processes),
            "runPolicy": {
                "activeDeadlineSeconds": workload.deadline_s,
                "backoffLimit": _RESTARTS * workload.nodes,
                "cleanPodPolicy": "Running",
            },
            "pytorchReplicaSpecs": replicas,
        },
    }


def _replicas(count: int, template: Object) -> Object:
    return {"replicas": count, "restartPolicy": "OnFailure", "template": template}

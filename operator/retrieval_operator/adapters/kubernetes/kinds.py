"""The kinds of Kubernetes objects that the operator reads or writes, and how their addresses are built.

A kind that is not in here is never touched; the chart's RBAC rules are written from this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retrieval_operator.api.constants import GROUP, KIND, VERSION

# A Kubernetes object as decoded JSON.
Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind in one version. `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects spell it: `batch/v1`, and `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "") -> str:
        """The address of one object, or of the collection; namespace None: of all namespaces."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace is not None else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")

    def __str__(self) -> str:
        return self.kind


RETRIEVAL_MODEL = Kind(GROUP, VERSION, "retrievalmodels", KIND)
POD = Kind("", "v1", "pods", "Pod")
SERVICE = Kind("", "v1", "services", "Service")
PERSISTENT_VOLUME_CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
EVENT = Kind("", "v1", "events", "Event")
JOB = Kind("batch", "v1", "jobs", "Job")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
POD_DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
PYTORCH_JOB = Kind("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
INFERENCE_SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")

KINDS = (
    *(RETRIEVAL_MODEL, POD, SERVICE, PERSISTENT_VOLUME_CLAIM, NAMESPACE, EVENT, JOB, LEASE, POD_DISRUPTION_BUDGET),
    *(DEPLOYMENT, PYTORCH_JOB, INFERENCE_SERVICE),
)
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in KINDS}


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The kind an object says it is. Raises KeyError for one that is not in the list above: a defect of ours."""
    return _BY_NAME[obj["apiVersion"], obj["kind"]]

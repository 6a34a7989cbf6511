"""Which verbs on which kinds the operator needs, and no more. The chart's RBAC rules are generated from these tables.

python -m retrieval_operator.adapters.kubernetes.permissions > charts/retrieval-operator/files/permissions.yaml

A request that no row allows is refused by the API server, so a new call comes with its row here. Nobody may read
Secrets: pods name them, the kubelet reads them.

A server-side apply (of the status), and a merge patch, are `patch`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from retrieval_operator.adapters.kubernetes import kinds
from retrieval_operator.adapters.kubernetes.kinds import Kind

_HEADER = """\
# Generated: python -m retrieval_operator.adapters.kubernetes.permissions. Do not edit.
# watched: in every namespace that is watched; cluster: objects without a namespace; own: in the operator's namespace;
# uninstall*: of the hook that runs when the chart is uninstalled.
"""


@dataclass(frozen=True)
class Permission:
    """Verbs on one kind, or on a subresource of it. `why` is for whoever reviews the rules."""

    kind: Kind
    verbs: tuple[str, ...]
    why: str
    subresource: str = ""

    def rule(self) -> dict[str, list[str]]:
        """As a rule of rbac.authorization.k8s.io/v1."""
        resource = f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural
        return {"apiGroups": [self.kind.group], "resources": [resource], "verbs": list(self.verbs)}


_SEE = ("list", "watch")
# get: whose is it, when a name is taken? The watches tell of ours only.
_MAKE = ("get", "create", "delete")

WATCHED = (
    Permission(
        kinds.RETRIEVAL_MODEL,
        (*_SEE, "patch"),
        "the objects; patch is for our finalizer, and a spec is never written",
    ),
    Permission(kinds.RETRIEVAL_MODEL, ("patch",), "conditions, champion, candidate, history", subresource="status"),
    Permission(kinds.JOB, (*_SEE, *_MAKE, "patch"), "all work but distributed training; patch stops it"),
    Permission(kinds.PYTORCH_JOB, (*_SEE, *_MAKE, "patch"), "distributed training; patch stops it"),
    Permission(kinds.INFERENCE_SERVICE, (*_SEE, *_MAKE, "patch"), "the servers of a stack; patch changes their number"),
    Permission(kinds.POD_DISRUPTION_BUDGET, (*_SEE, *_MAKE), "nodes are drained of one server at a time"),
    Permission(
        kinds.SERVICE,
        (*_SEE, *_MAKE, "patch"),
        "a stack's record; the stable address: get before there is a champion, patch is the switch",
    ),
    Permission(kinds.POD, _SEE, "readiness, exit codes, termination messages"),
    Permission(kinds.EVENT, ("create", "get", "patch", "list"), "what happened, for people; why pods are not made"),
    Permission(kinds.PERSISTENT_VOLUME_CLAIM, ("get",), "whether the storage is there"),
    Permission(kinds.NAMESPACE, ("get",), "whether an object is deleted alone, or its whole namespace"),
)
CLUSTER: tuple[Permission, ...] = ()
OWN = (Permission(kinds.LEASE, ("get", "create", "patch"), "one operator acts at a time"),)
UNINSTALL = (Permission(kinds.RETRIEVAL_MODEL, ("list", "patch"), "to take our finalizer off"),)
UNINSTALL_DELETE = (Permission(kinds.RETRIEVAL_MODEL, ("delete",), "only with uninstall.deleteObjects"),)
UNINSTALL_OWN = (
    Permission(kinds.DEPLOYMENT, ("get", "patch"), "the operator stops first: it would set its finalizer again"),
    Permission(kinds.POD, ("list",), "to see that it has stopped"),
)

SCOPES: Mapping[str, Sequence[Permission]] = {
    "watched": WATCHED,
    "cluster": CLUSTER,
    "own": OWN,
    "uninstall": UNINSTALL,
    "uninstallDelete": UNINSTALL_DELETE,
    "uninstallOwn": UNINSTALL_OWN,
}


def document() -> dict[str, Any]:
    """The rules of every scope, as the chart reads them."""
    return {scope: [permission.rule() for permission in permissions] for scope, permissions in SCOPES.items()}


def permissions_yaml() -> str:
    """The text of the chart's files/permissions.yaml."""
    return _HEADER + yaml.safe_dump(document(), sort_keys=False, width=120)


if __name__ == "__main__":
    sys.stdout.write(permissions_yaml())

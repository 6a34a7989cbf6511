"""What the Kubernetes adapters ask of an API server, as a Protocol, and who owns what they write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from retrieval_operator.adapters.kubernetes.kinds import Kind, Object

# Field managers: one for children and our finalizer (to the API server, creates and merge patches are of who the user
# agent says, so that has this name, too), one for the status.
MANAGER = "retrieval-operator"
STATUS_MANAGER = "retrieval-operator-status"


class KubernetesApi(Protocol):
    """Requests on one object each. Raises ports.Retryable, Stale, Rejected, Gone with the server's own words.

    Gone: the namespace is being deleted or does not exist, the object of a patch does not exist, or the definition of a
    listed kind is not installed. Something else of a kind that is not installed is Retryable.
    """

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """The object as the server has it now; None when it does not exist. `namespace` None for cluster kinds."""

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        """Every object with these labels as the server has it now; namespace None: of all namespaces."""

    async def create(self, obj: Object) -> Object | None:
        """The object as created; None: one with that name exists already, whoever made it."""

    async def apply_status(self, obj: Object, *, manager: str) -> Object:
        """Server-side apply of the status subresource; conflicts with other managers are overruled.

        `obj` holds apiVersion, kind, metadata and status. Returns the object as it is then.
        """

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, *, resource_version: str = ""
    ) -> Object:
        """A merge patch (RFC 7396). With `resource_version` Stale when it is another one by now."""

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", foreground: bool = False) -> None:
        """Missing is fine; with `uid` so is another object of that name, which stays. Dependents go, too.

        `foreground`: the object stays visible until its dependents are gone.
        """

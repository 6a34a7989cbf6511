"""What an API server's audit log says that a program did: its requests, and which of its rights it used.

The log is JSON lines of audit.k8s.io/v1 Event, as native_cluster and lone_api_server have it written (policy: at least
Metadata for what the operator does, without the stage RequestReceived). A watch is two lines: begun and ended.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from retrieval_operator.adapters.kubernetes import kinds
from retrieval_operator.adapters.kubernetes.kinds import Kind
from retrieval_operator.adapters.kubernetes.permissions import SCOPES

READS = frozenset({"get", "list", "watch"})
OPERATOR_SCOPES = ("watched", "cluster", "own")


@dataclass(frozen=True)
class Request:
    """One request on objects. `asked_at` and `answered_at` in seconds since the epoch; `said` is a refusal's words.

    `answered_at` of a watch is when it began. `namespace` is "" for cluster kinds and for all namespaces at once.
    """

    id: str
    user: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    asked_at: float
    answered_at: float
    said: str = ""

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Self | None:
        """None for a request that is about no objects: discovery, health."""
        about = event.get("objectRef")
        if about is None:
            return None
        status = event.get("responseStatus", {})
        return cls(
            id=event["auditID"],
            user=event["user"].get("username", ""),  # a refused token has none
            verb=event["verb"],
            group=about.get("apiGroup", ""),
            resource=about["resource"],
            subresource=about.get("subresource", ""),
            namespace=about.get("namespace", ""),
            name=about.get("name", ""),
            code=int(status.get("code", 0)),
            asked_at=_seconds(event["requestReceivedTimestamp"]),
            answered_at=_seconds(event["stageTimestamp"]),
            said=str(status.get("message", "")),
        )

    @property
    def is_write(self) -> bool:
        return self.verb not in READS

    def __str__(self) -> str:
        resource = "/".join(filter(None, [self.resource, self.subresource]))
        place = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {resource} {self.name}".rstrip() + f"{place}: {self.code} {self.said}".rstrip()


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource, in one of the scopes of permissions.py."""

    scope: str
    group: str
    resource: str
    subresource: str
    verb: str

    def __str__(self) -> str:
        resource = "/".join(filter(None, [self.resource, self.subresource]))
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {resource}{group} ({self.scope})"


def _watched(kind: Kind, verb: str) -> Right:
    return Right("watched", kind.group, kind.plural, "", verb)


# Rights that a run with all its lives may leave unused, and what would use them.
EXCUSED: Mapping[Right, str] = {
    _watched(kinds.EVENT, "get"): "the same event happens twice",
    _watched(kinds.EVENT, "patch"): "the same event happens twice",
    _watched(kinds.EVENT, "list"): "an attempt has no pods for a minute: quota, PodSecurity",
    _watched(kinds.JOB, "patch"): "work that has become useless is stopped while it runs",
    _watched(kinds.PYTORCH_JOB, "patch"): "a training that has become useless is stopped while it runs",
    **{
        _watched(kind, "get"): "a name is taken by somebody else's"
        for kind in (kinds.JOB, kinds.PYTORCH_JOB, kinds.INFERENCE_SERVICE, kinds.POD_DISRUPTION_BUDGET)
    },
}
# The stories of `make e2e-full` suspend a training.
EXCUSED_IN_FULL: Mapping[Right, str] = {
    right: why for right, why in EXCUSED.items() if right != _watched(kinds.PYTORCH_JOB, "patch")
}


@dataclass(frozen=True)
class Comparison:
    """`unused` rights of the table; `unlisted` rights that the table does not have; what was `refused` with 403.

    `refused_once`: the same was allowed in the same namespace at another time, so no right misses. An API server that
    starts answers 403 until it has read its roles; admission (quota, a namespace that is being deleted) does as well.
    """

    unused: Sequence[Right]
    unlisted: Sequence[Right]
    refused: Sequence[Request]
    refused_once: Sequence[Request] = ()

    def problems(self) -> list[str]:
        """Sentences; none when the table is exactly what was used."""
        return [
            *(f"unused: {right}" for right in self.unused),
            *(f"used, and not in the table: {right}" for right in self.unlisted),
            *(f"refused: {request}" for request in self.refused),
        ]


def read(log: Path) -> Iterator[Request]:
    """The requests of a log and of its full predecessors (`audit-<time>.log` beside `audit.log`), oldest first.

    Each once, with its first line. A last line that is being written is left out.
    """
    seen: set[str] = set()
    for path in (*sorted(log.parent.glob(f"{log.stem}-*{log.suffix}")), log):
        with path.open() as lines:
            for line in lines:
                if not line.endswith("\n"):
                    continue
                event = json.loads(line)
                request = Request.of(event)
                if request is not None and request.id not in seen and event["stage"] != "RequestReceived":
                    seen.add(request.id)
                    yield request


def table(scopes: Iterable[str] = OPERATOR_SCOPES) -> set[Right]:
    """permissions.py, one right at a time."""
    return {
        Right(scope, row.kind.group, row.kind.plural, row.subresource, verb)
        for scope in scopes
        for row in SCOPES[scope]
        for verb in row.verbs
    }


def compare(
    requests: Iterable[Request],
    user: str,
    own_namespace: str,
    *,
    scopes: Sequence[str] = OPERATOR_SCOPES,
    excused: Mapping[Right, str] = EXCUSED,
) -> Comparison:
    """What the user did, beside what the table lets it do. `own_namespace` is where the operator itself runs."""
    granted = table(scopes)
    theirs = [request for request in requests if request.user == user]
    allowed = [request for request in theirs if request.code != 403]
    refused = [request for request in theirs if request.code == 403]
    ever_allowed = {_about(request) for request in allowed}
    used: set[Right] = set()
    unlisted: set[Right] = set()
    for request in allowed:
        for verb in _verbs(request):
            found = _listed(request, verb, own_namespace, granted)
            used |= found
            if not found:
                scope = "own" if request.namespace == own_namespace else "watched"
                unlisted.add(Right(scope, request.group, request.resource, request.subresource, verb))
    return Comparison(
        unused=sorted(granted - used - excused.keys()),
        unlisted=sorted(unlisted),
        refused=[request for request in refused if _about(request) not in ever_allowed],
        refused_once=[request for request in refused if _about(request) in ever_allowed],
    )


def _about(request: Request) -> tuple[str, ...]:
    """What is asked for, whatever the object."""
    return (request.verb, request.group, request.resource, request.subresource, request.namespace)


def _verbs(request: Request) -> Sequence[str]:
    """What was authorised: an apply that makes its object is told as a patch, and needs create as well."""
    return ("patch", "create") if request.verb == "patch" and request.code == 201 else (request.verb,)


def _listed(request: Request, verb: str, own_namespace: str, granted: set[Right]) -> set[Right]:
    """The rights that allow it. Those of the own namespace are of use there only."""
    about = (request.group, request.resource, request.subresource, verb)
    return {
        right
        for right in granted
        if (right.group, right.resource, right.subresource, right.verb) == about
        and (not right.scope.lower().endswith("own") or request.namespace == own_namespace)
    }


def _seconds(moment: str) -> float:
    return dt.datetime.fromisoformat(moment).timestamp()

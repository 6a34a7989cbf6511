"""Clients that ask all the time, in a pod of a life's namespace, and what they were told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from lives.place import DATASET, USER, Object, Place

_PROGRAMS = (
    Path(__file__).parents[3] / "examples" / "demo" / "clients.py",
    Path(__file__).parent / "clients_in_pod.py",
)
KINDS = ("keep-alive", "new connections", "grpc")
_POD = "clients"
_MEMBERS = 200
# Of the pod, on two busy cores: mostly Python's imports.
_START_S, _END_S = 180, 60


@dataclass(frozen=True)
class Told:
    """What clients of one kind were told: how often which outcome in which second since 1970.

    An outcome is the pair of ids in an answer, "failed", or "mixed" (ids that differ within one answer).
    """

    outcomes: Mapping[tuple[int, str], int]
    failures: tuple[str, ...]  # the first few, in words

    @property
    def counts(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_second, outcome), count in self.outcomes.items():
            found[outcome] += count
        return found

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    def unexpected(self, pairs: Iterable[str]) -> dict[str, int]:
        """What was seen besides good answers of these stacks."""
        expected = set(pairs)
        return {outcome: count for outcome, count in self.counts.items() if outcome not in expected}

    def between(self, first: int, last: int) -> Told:
        """What was told from one second to another, both included; its failures are those of all the time."""
        outcomes = {key: count for key, count in self.outcomes.items() if first <= key[0] <= last}
        return Told(outcomes, self.failures)

    def share(self, outcome: str, since: int) -> float:
        """Of the requests from that second on."""
        seen = [(other, count) for (second, other), count in self.outcomes.items() if second >= since]
        return sum(count for other, count in seen if other == outcome) / sum(count for _other, count in seen)

    def seconds(self, outcome: str) -> list[int]:
        """When it was seen, in order."""
        return sorted(second for second, other in self.outcomes if other == outcome)


@dataclass(frozen=True)
class Clients:
    """A pod that asks until it is told to stop: over kept-alive connections, over new ones, and by gRPC."""

    place: Place

    def stop(self) -> dict[str, Told]:
        """By kind of client."""
        self.place.run("exec", _POD, "--", "python3", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
        self.place.run("wait", f"pod/{_POD}", "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={_END_S}s")
        printed: dict[str, Object] = json.loads(self.place.run("logs", _POD).splitlines()[-1])
        return {kind: _told(seen) for kind, seen in printed.items()}


@contextmanager
def asking(place: Place, name: str, image: str) -> Iterator[Clients]:
    """Clients of an object that has a champion, each kind of which was answered. The pod is gone afterwards.

    `image` is the encoder server's: it has a gRPC client.
    """
    arguments = [place.model(name)["status"]["address"], name, ",".join(_members(place))]
    place.run("create", "--filename=-", documents=[_programs(), _pod(image, arguments)])
    try:
        place.run("wait", f"pod/{_POD}", "--for=condition=Ready", f"--timeout={_START_S}s")
        yield Clients(place)
    except AssertionError:
        print(place.run("logs", _POD, "--tail=20", "--ignore-errors"))
        raise
    finally:
        place.run("delete", f"pod/{_POD}", f"configmap/{_POD}", "--grace-period=1")


def pair(stack: Mapping[str, Any]) -> str:
    """The outcome of an answer of this stack, by its record."""
    return f"{stack['bundleId']} {stack['generationId']}"


def _told(seen: Object) -> Told:
    outcomes = {(int(second), str(outcome)): int(count) for second, outcome, count in seen["outcomes"]}
    return Told(outcomes, tuple(seen["failures"]))


def _members(place: Place) -> list[str]:
    members = pq.read_table(place.path / "data" / DATASET / "members", columns=["member_id"])["member_id"]
    return [str(member) for member in members[:_MEMBERS].to_pylist()]


def _programs() -> Object:
    data = {path.name: path.read_text() for path in _PROGRAMS}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _POD}, "data": data}


def _pod(image: str, arguments: list[str]) -> Object:
    """Satisfies PodSecurity "restricted". Ready once every client was answered, which its program writes down."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _POD},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "clients",
                    "image": image,
                    "command": ["python3", f"/programs/{_PROGRAMS[-1].name}", *arguments],
                    "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/answered"]}, "periodSeconds": 2},
                    "resources": {"requests": {"cpu": "50m", "memory": "200Mi"}, "limits": {"memory": "1Gi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "programs", "mountPath": "/programs", "readOnly": True},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [{"name": "programs", "configMap": {"name": _POD}}, {"name": "tmp", "emptyDir": {}}],
        },
    }

"""The operator and MLflow are taken away and come back: each is a Deployment in a namespace of its own name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lives.namespaces import OPERATOR
from lives.place import Kubectl, Object

ACCOUNT = f"system:serviceaccount:{OPERATOR}:{OPERATOR}"  # the operator's, as the API server calls it
_WAIT = "--timeout=300s"


@contextmanager
def away(kubectl: Kubectl, name: str) -> Iterator[None]:
    """Within the block it has no pod."""
    place = ("--namespace", name)
    kubectl(*place, "scale", f"deployment/{name}", "--replicas=0")
    try:
        kubectl(*place, "wait", "--for=delete", "pods", "--all", _WAIT)
        yield
    finally:
        kubectl(*place, "scale", f"deployment/{name}", "--replicas=1")
        kubectl(*place, "rollout", "status", f"deployment/{name}", _WAIT)


@dataclass(frozen=True)
class Release:
    """The chart, as an administrator works with it: `helm <command> retrieval-operator ...`. `flags` are its values."""

    kubectl: Kubectl
    helm: Callable[..., subprocess.CompletedProcess[str]]
    environment: Mapping[str, str]
    flags: Sequence[str]

    def install(self, chart: Path, *flags: str) -> None:
        self._run("install", str(chart), "--create-namespace", *self.flags, *flags)
        self.wait()

    def install_definition(self, chart: Path) -> None:
        """A chart that has nothing but the definition, and no values."""
        self._run("install", str(chart), "--create-namespace")

    def upgrade(self, chart: Path, *flags: str) -> None:
        """Installs it where it is not."""
        self._run("upgrade", str(chart), "--install", *self.flags, *flags)
        self.wait()

    def uninstall(self) -> None:
        self._run("uninstall")

    def wait(self) -> None:
        self.kubectl("--namespace", OPERATOR, "rollout", "status", f"deployment/{OPERATOR}", _WAIT)

    def exists(self) -> bool:
        return bool(self.kubectl("--namespace", OPERATOR, "get", "deployments", "--output=name"))

    def deployment(self) -> Object:
        found: Object = json.loads(
            self.kubectl("--namespace", OPERATOR, "get", "deployment", OPERATOR, "--output=json")
        )
        return found

    def _run(self, command: str, *arguments: str) -> None:
        done = self.helm(command, OPERATOR, *arguments, "--namespace", OPERATOR, env=self.environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

"""The cluster's own kubectl, for the few things a start needs of the API."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from native_cluster.layout import ClusterError

REQUEST_TIMEOUT_S = 60


class Kubectl:
    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self._command = [str(program), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, document: str = "", timeout_s: float = REQUEST_TIMEOUT_S) -> str:
        """What it printed; ClusterError with its complaint when it failed or took too long."""
        try:
            result = subprocess.run(
                [*self._command, *arguments],
                input=document,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` took more than {timeout_s:.0f} s") from error
        if result.returncode:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` failed: {result.stderr.strip()}")
        return result.stdout

    def ready(self) -> bool:
        """Whether the API server says it is ready."""
        return self.succeeds("get", "--raw=/readyz")

    def succeeds(self, *arguments: str, document: str = "") -> bool:
        try:
            self.run("--request-timeout=10s", *arguments, document=document)
        except ClusterError:
            return False
        return True

    def get(self, kind: str, name: str, *, namespace: str = "default") -> dict[str, Any]:
        """The object; {} when it does not exist."""
        text = self.run("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
        return dict(json.loads(text)) if text else {}

    def apply(self, documents: str | Sequence[dict[str, Any]]) -> None:
        """Server-side: CRDs of this size do not fit into the annotation that a client-side apply writes."""
        text = documents if isinstance(documents, str) else yaml.safe_dump_all(documents)
        self.run("apply", "--server-side", "--force-conflicts", "--filename=-", document=text)

"""The pod that this process runs in, if it does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def namespace() -> str:
    """Of the pod; "" outside of a cluster, or where no service account is mounted."""
    with suppress(OSError):
        return _NAMESPACE_FILE.read_text().strip()
    return ""

"""Whether a named cluster runs on this machine: the volumes of the stories are directories here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_MACHINE_ID = Path("/etc/machine-id")


def elsewhere(nodes: Iterable[Mapping[str, Any]], machine_id: str | None = None) -> str:
    """Which nodes are other machines, or may be, in a sentence; "" when none is. `machine_id`: this machine's.

    A pod may come to any of them. A node in a container of this machine has an id of its own: it sees other files.
    """
    if machine_id is None:
        machine_id = _MACHINE_ID.read_text().strip() if _MACHINE_ID.exists() else ""
    ids = {node["metadata"]["name"]: node["status"]["nodeInfo"]["machineID"] for node in nodes}
    others = sorted(name for name, found in ids.items() if not machine_id or found != machine_id)
    if not others:
        return ""
    return f"volumes are directories of this machine, and it is not known to be node {', '.join(others)} (machine-id)"

"""All of local mode's adapters over one home, and what concerns all of its processes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retrieval_operator.adapters.local.home import LocalHome, make_directory, read_json
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.programs import PROGRAMS, ProgramTable
from retrieval_operator.adapters.local.stacks import LocalStacks, remove_stack
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.adapters.local.surroundings import LocalSurroundings
from retrieval_operator.adapters.local.traffic import LocalTraffic
from retrieval_operator.adapters.local.workloads import LocalWorkloads

# Each waits for a process to end; a machine has few of them.
_STOPPING_AT_ONCE = 16


class LocalMachine:
    """The composition: `store`, `workloads`, `stacks`, `traffic`, `surroundings` fill the ports of the same name.

    `repairs` is for the control plane alone: looking then also starts servers and proxies again that should run. Every
    other command leaves it off, so that looking changes nothing.
    """

    def __init__(
        self,
        home: LocalHome,
        *,
        repairs: bool,
        tracking_uri: str = "",
        preferred_ports: Mapping[str, int] | None = None,
        programs: ProgramTable = PROGRAMS,
    ) -> None:
        make_directory(home.root)
        self.home = home
        self.supervisor = Supervisor()
        self.store = LocalModelStore(home)
        self.workloads = LocalWorkloads(home, self.supervisor, tracking_uri=tracking_uri, programs=programs)
        self.stacks = LocalStacks(home, self.supervisor, repairs=repairs, programs=programs)
        self.traffic = LocalTraffic(home, self.supervisor, repairs=repairs, preferred_ports=preferred_ports)
        self.surroundings = LocalSurroundings(home, programs=programs)

    async def collect_garbage(self) -> list[Path]:
        """Stop and remove what belongs to objects that are gone, as owner references do on Kubernetes.

        Returns the directories. Call it after a deletion, and when the control plane starts.
        """
        return await asyncio.to_thread(self._collect_garbage)

    async def stop_everything(self) -> None:
        """End every process of this home and keep the records. Servers and proxies come back with the control plane."""
        await asyncio.to_thread(self._stop, list(self._process_directories()))

    def _collect_garbage(self) -> list[Path]:
        owners = self.store.owners()

        def is_garbage(key: str, owner: object) -> bool:
            return key not in owners or owners[key] not in {None, owner}

        removed = []
        for directory in sorted((self.home.root / "workloads").glob("*/*/[!.]*")):
            process = self.supervisor.observe(directory)
            if process and is_garbage(_key(directory), process.record.get("owner")):
                self.supervisor.remove(directory)
                removed.append(directory)
        for key in self.home.keys("traffic"):
            document = read_json(self.home.traffic_file(key))
            if document and is_garbage(key, document["owner"]):
                self.supervisor.remove(self.home.proxy(key))
                self.home.traffic_file(key).unlink(missing_ok=True)
                removed.append(self.home.proxy(key))
        for directory in sorted((self.home.root / "stacks").glob("*/*/[!.]*")):
            document = read_json(directory / "stack.json")
            is_orphan = document is not None and is_garbage(_key(directory), document["owner"])
            if is_orphan or (directory / "removed.json").exists():
                remove_stack(self.supervisor, directory)
                removed.append(directory)
        return removed

    def _stop(self, directories: list[Path]) -> None:
        with ThreadPoolExecutor(_STOPPING_AT_ONCE) as pool:
            list(pool.map(self.supervisor.stop, directories))

    def _process_directories(self) -> Iterator[Path]:
        for pattern in ("workloads/*/*/*", "proxies/*/*", "stacks/*/*/*/replica-*", "services/*"):
            yield from sorted(self.home.root.glob(pattern))


def _key(child: Path) -> str:
    """The object's key of a workload's or a stack's directory."""
    return f"{child.parent.parent.name}/{child.parent.name}"

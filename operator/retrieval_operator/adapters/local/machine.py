"""All of local mode's adapters over one home, and what concerns all of its processes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from retrieval_operator.adapters.local.home import LocalHome, make_directory, read_json
from retrieval_operator.adapters.local.logs import bound_logs
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.programs import PROGRAMS, ProgramTable
from retrieval_operator.adapters.local.stacks import LocalStacks, remove_stack
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.adapters.local.surroundings import LocalSurroundings
from retrieval_operator.adapters.local.traffic import LocalTraffic
from retrieval_operator.adapters.local.workloads import LocalWorkloads
from retrieval_operator.ports import PortError, Rejected

log = structlog.get_logger(__name__)

# Each waits for a process to end; a machine has few of them.
_STOPPING_AT_ONCE = 16


@dataclass(frozen=True)
class _Child:
    """What the object of this key and uid runs here. `owner` None: not known, and then only the key counts."""

    key: str
    owner: str | None
    directory: Path
    remove: Callable[[], None]
    removal_was_cut: bool = False


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
        """Stop and remove what belongs to objects that are gone, as owner references do on Kubernetes; bound the logs.

        Returns the directories. Call it after a deletion, and when the control plane starts.
        """
        await asyncio.to_thread(bound_logs, self.home.root)
        return await asyncio.to_thread(self._collect_garbage)

    async def stop_everything(self) -> None:
        """End every process of this home and keep the records. Servers and proxies come back with the control plane."""
        await asyncio.to_thread(self._stop, list(self._process_directories()))

    def _collect_garbage(self) -> list[Path]:
        # Before the objects: what an object that is made meanwhile runs is then not among them.
        children = list(self._children())
        owners = self.store.owners()
        removed = []
        for child in children:
            if not (child.removal_was_cut or _is_garbage(child, owners)):
                continue
            try:
                child.remove()
            except PortError as error:
                log.warning("garbage is left to the next time", directory=str(child.directory), error=str(error))
            else:
                removed.append(child.directory)
        return removed

    def _children(self) -> Iterator[_Child]:
        for directory in sorted((self.home.root / "workloads").glob("*/*/[!.]*")):
            process = self.supervisor.observe(directory)
            if process:
                remove = partial(self.supervisor.remove, directory)
                yield _Child(_key(directory), process.record.get("owner"), directory, remove)
        for key in self.home.keys("traffic"):
            remove = partial(self._remove_traffic, key)
            yield _Child(key, _owner(self.home.traffic_file(key)), self.home.proxy(key), remove)
        for directory in sorted((self.home.root / "stacks").glob("*/*/[!.]*")):
            removal_was_cut = (directory / "removed.json").exists()
            if removal_was_cut or (directory / "stack.json").exists():
                remove = partial(remove_stack, self.supervisor, directory)
                yield _Child(_key(directory), _owner(directory / "stack.json"), directory, remove, removal_was_cut)

    def _remove_traffic(self, key: str) -> None:
        self.supervisor.remove(self.home.proxy(key))
        self.home.traffic_file(key).unlink(missing_ok=True)

    def _stop(self, directories: list[Path]) -> None:
        with ThreadPoolExecutor(_STOPPING_AT_ONCE) as pool:
            list(pool.map(self.supervisor.stop, directories))

    def _process_directories(self) -> Iterator[Path]:
        for pattern in ("workloads/*/*/*", "proxies/*/*", "stacks/*/*/*/replica-*", "services/*"):
            yield from sorted(self.home.root.glob(pattern))


def _key(child: Path) -> str:
    """The object's key of a workload's or a stack's directory."""
    return f"{child.parent.parent.name}/{child.parent.name}"


def _owner(path: Path) -> str | None:
    """The uid in a file of ours; None for a file that cannot be read or is gone."""
    try:
        return (read_json(path) or {}).get("owner")
    except Rejected as error:
        log.warning("file cannot be read", path=str(path), error=str(error))
        return None


def _is_garbage(child: _Child, owners: Mapping[str, str | None]) -> bool:
    """Its object is gone, or is another one now. What cannot be read does not make anybody's child garbage."""
    if child.key not in owners:
        return True
    return None not in (child.owner, owners[child.key]) and child.owner != owners[child.key]

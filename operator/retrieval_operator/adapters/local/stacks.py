"""Stacks on this machine: one supervised server process per replica, each on its own recorded loopback port.

    stacks/<ns>/<name>/<stack>/stack.json   {owner, record, created_at, ports: one per wanted replica}
    stacks/<ns>/<name>/<stack>/replica-N/   a process directory

stack.json is what is wanted; the processes follow it. A wrapper restarts a server that exits, up to a limit, also
while no control plane runs; a server whose wrapper is gone (killed, or the machine was restarted) is started again by
the next `create`, or by the next look when `repairs` is on. A replica that gave up beside others that are ready is
started again in the same way, after a rest; when none is ready the stack has failed, and `decide` says what follows.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from retrieval_operator.adapters.local import loopback
from retrieval_operator.adapters.local.home import Busy, LocalHome, make_directory, read_json, write_json
from retrieval_operator.adapters.local.loopback import HOST
from retrieval_operator.adapters.local.processes import Command, ProcessObserved, Restarts, Supervisor
from retrieval_operator.adapters.local.programs import PROGRAMS, ProgramTable, clean_environment, command_line
from retrieval_operator.adapters.local.traffic import live_stack, lock_name
from retrieval_operator.api.constants import FINAL_EXIT_CODES
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.pod import Pod
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.domain.serving import SERVER, server_environment
from retrieval_operator.ports import Rejected, Stale

# Drain, then KILL. Requests take at most seconds; half of Kubernetes' default termination grace of 30 s.
_GRACE_S = 15.0
# Five starts with 0.5, 1, 2, 4 s between them: a port that is freed late, a file that appears late. A gut feeling.
_RESTARTS = Restarts(limit=4, backoff_s=0.5, max_backoff_s=10.0, final_codes=tuple(sorted(FINAL_EXIT_CODES)))
# The servers beside it prove that bundle and generation are sound, so trying again is worth it. A gut feeling.
_REST_S = 30.0
_PROBE_TIMEOUT_S = 2.0
# Loopback HTTP only. httpx would load the certificate bundle for each client: 20 ms, and 1 MB.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_PORTS_LOCK = "ports"


class LocalStacks:
    """Fills the port Stacks. `repairs`: observing also starts servers again that are gone with their wrapper."""

    def __init__(
        self,
        home: LocalHome,
        supervisor: Supervisor,
        *,
        repairs: bool,
        programs: ProgramTable = PROGRAMS,
        grace_s: float = _GRACE_S,
        restarts: Restarts = _RESTARTS,
        rest_s: float = _REST_S,
    ) -> None:
        self._home = home
        self._supervisor = supervisor
        self._repairs = repairs
        self._programs = programs
        self._grace_s = grace_s
        self._restarts = restarts
        self._rest_s = rest_s

    async def observe(self, model: RetrievalModel) -> Mapping[str, StackObserved]:
        if self._repairs:
            await asyncio.to_thread(self._repair, model)
        wanted = {path.name: self._read(model, path) for path in self._home.stacks(model.key).glob("[!.]*")}
        async with _client() as client:
            tasks = [
                self._observe_stack(client, model, self._home.stack(model.key, stack), document)
                for stack, document in sorted(wanted.items())
                if document
            ]
            observed = await asyncio.gather(*tasks)
        return {stack.record.stack: stack for stack in observed}

    async def create(self, model: RetrievalModel, record: StackRecord, replicas: int, max_replicas: int = 0) -> None:
        del max_replicas  # one machine has no autoscaler (rules.py refuses its bound)
        await asyncio.to_thread(self._create, model, record, replicas)

    async def scale(self, model: RetrievalModel, stack: str, replicas: int, max_replicas: int = 0) -> None:
        del max_replicas
        await asyncio.to_thread(self._scale, model, stack, replicas)

    async def delete(self, model: RetrievalModel, stack: str) -> None:
        await asyncio.to_thread(self._delete, model, stack)

    def _create(self, model: RetrievalModel, record: StackRecord, replicas: int) -> None:
        directory = self._home.stack(model.key, record.stack)
        with self._home.locked(_lock_name(model.key)):
            if self._read(model, directory) is None:
                remove_stack(self._supervisor, directory)  # what a deleted object of the same name left
                make_directory(directory)
                document = {
                    "owner": model.metadata.uid,
                    "record": record.document(),
                    "created_at": int(time.time()),
                    "ports": [],
                }
                self._write_ports(model, directory, document, replicas=replicas)
            self._run_wanted(model, directory, revive_failed=True)

    def _scale(self, model: RetrievalModel, stack: str, replicas: int) -> None:
        directory = self._home.stack(model.key, stack)
        with self._home.locked(_lock_name(model.key)):
            document = self._read(model, directory)
            if document is None:
                raise Stale(f"stack {stack} of {model.key} does not exist any more")
            if len(document["ports"]) != replicas:
                # Written first: the proxy sends nothing more to a replica before it is stopped.
                self._write_ports(model, directory, document, replicas=replicas)
            for path in _replicas(directory)[replicas:]:
                self._supervisor.remove(path)
            self._run_wanted(model, directory, revive_failed=False)

    def _delete(self, model: RetrievalModel, stack: str) -> None:
        directory = self._home.stack(model.key, stack)
        # The traffic lock: nobody can switch to the stack between the question and the removal of its file.
        with self._home.locked(_lock_name(model.key)):
            with self._home.locked(lock_name(model.key)):
                if self._read(model, directory) is None:
                    return
                if live_stack(self._home, model.key) == stack:
                    raise Rejected(f"stack {stack} of {model.key} is live; switch the traffic away first")
                (directory / "stack.json").rename(directory / "removed.json")
            remove_stack(self._supervisor, directory)

    def _repair(self, model: RetrievalModel) -> None:
        """Start what is wanted and gone. A server that gave up is left alone: it said why (but see `_revive`).

        While somebody changes the stacks (a removal drains for seconds) nothing is done: the next look will.
        """
        with suppress(Busy), self._home.locked(_lock_name(model.key), timeout_s=0):
            for directory in self._home.stacks(model.key).glob("[!.]*"):
                if self._read(model, directory):
                    self._run_wanted(model, directory, revive_failed=False)
                elif (directory / "removed.json").exists():
                    remove_stack(self._supervisor, directory)  # a removal that was cut

    def _revive(self, model: RetrievalModel, directory: Path) -> None:
        """Start those that gave up again, unless somebody changes the stacks: then the next look will."""
        with suppress(Busy), self._home.locked(_lock_name(model.key), timeout_s=0):
            if self._read(model, directory):
                self._run_wanted(model, directory, revive_failed=True)

    def _run_wanted(self, model: RetrievalModel, directory: Path, *, revive_failed: bool) -> None:
        document = self._read(model, directory)
        assert document is not None
        for index in range(len(document["ports"])):
            replica = directory / f"replica-{index}"
            process = self._supervisor.observe(replica)
            if process and (process.state == "Running" or (_has_given_up(process) and not revive_failed)):
                continue
            self._supervisor.settle_lost(replica)  # an orphan still has the port
            if not loopback.is_free(document["ports"][index]):
                self._write_ports(model, directory, document, renew=index)
            self._supervisor.restart(replica, self._command(model, document, document["ports"][index]))

    def _write_ports(
        self,
        model: RetrievalModel,
        directory: Path,
        document: dict[str, Any],
        *,
        replicas: int | None = None,
        renew: int | None = None,
    ) -> None:
        """Give each of the wanted replicas a port; those that have one keep it, but for the replica to renew."""
        with self._home.locked(_PORTS_LOCK):
            taken = self._recorded_ports()
            kept = document["ports"][:replicas]
            missing = range(len(kept), len(kept) if replicas is None else replicas)
            for index in missing if renew is None else [renew]:
                port = loopback.choose(f"{directory}/{index}", taken)
                taken.add(port)
                kept[index : index + 1] = [port]
            document["ports"] = kept
            write_json(directory / "stack.json", document)

    def _recorded_ports(self) -> set[int]:
        """Ports of every stack and address of this home, also those that are just restarting."""
        ports: set[int] = set()
        for path in (*self._home.root.glob("stacks/*/*/*/stack.json"), *self._home.root.glob("traffic/*/*.json")):
            # Another object's damaged file must not stop this one; whether a port is free is looked at as well.
            with suppress(Rejected):
                document = read_json(path) or {}
                ports.update(document.get("ports", ()), [document["port"]] if "port" in document else ())
        return ports

    def _command(self, model: RetrievalModel, document: Mapping[str, Any], port: int) -> Command:
        record = StackRecord.model_validate(document["record"])
        return Command(
            argv=command_line(self._programs, SERVER, ()),
            environment={
                **clean_environment(Pod.model_validate(record.serving.get("pod", {}))),
                **server_environment(model.metadata.name, record),
                "HOST": HOST,
                "PORT": str(port),
                "DRAIN_SECONDS": f"{self._grace_s:g}",
            },
            grace_s=self._grace_s,
            restarts=self._restarts,
        )

    def _read(self, model: RetrievalModel, directory: Path) -> dict[str, Any] | None:
        document = read_json(directory / "stack.json")
        return document if document and document["owner"] == model.metadata.uid else None

    async def _observe_stack(
        self, client: httpx.AsyncClient, model: RetrievalModel, directory: Path, document: Mapping[str, Any]
    ) -> StackObserved:
        record = StackRecord.model_validate(document["record"])
        ports: list[int] = document["ports"]
        processes = [self._supervisor.observe(directory / f"replica-{index}") for index in range(len(ports))]
        ready = await asyncio.gather(
            *(
                _ready_port(client, port, record)
                for port, process in zip(ports, processes, strict=True)
                if process and process.state == "Running"
            )
        )
        gone = [process for process in processes if process and _has_given_up(process)]
        ready_ports = [port for port in ready if port]
        if self._repairs and ready_ports and gone and all(self._has_rested(process) for process in gone):
            await asyncio.to_thread(self._revive, model, directory)
        return StackObserved(
            record=record,
            ready_replicas=len(ready_ports),
            replicas=len(ports),
            address=f"http://{HOST}:{(ready_ports or ports)[0]}",
            created_at=document["created_at"],
            failed=_failure(gone[0]) if gone and not ready_ports else "",
        )

    def _has_rested(self, process: ProcessObserved) -> bool:
        return process.exit is not None and time.time() - process.exit.finished_at >= self._rest_s


def remove_stack(supervisor: Supervisor, directory: Path) -> None:
    """Drain all replicas at the same time, then forget the stack."""
    replicas = _replicas(directory)
    with ThreadPoolExecutor(max_workers=max(1, len(replicas))) as pool:
        list(pool.map(supervisor.stop, replicas))
    shutil.rmtree(directory, ignore_errors=True)


async def answers(address: str, record: StackRecord) -> bool:
    """Whether who answers at this address is ready and serves exactly this record's bundle and generation."""
    async with _client() as client:
        return await _is_ready(client, address, record)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=_PROBE_TIMEOUT_S, trust_env=False, verify=_NO_TLS)


async def _ready_port(client: httpx.AsyncClient, port: int, record: StackRecord) -> int:
    """The port if its server is ready, else 0."""
    return port if await _is_ready(client, f"http://{HOST}:{port}", record) else 0


async def _is_ready(client: httpx.AsyncClient, address: str, record: StackRecord) -> bool:
    with suppress(httpx.HTTPError, httpx.InvalidURL, ValueError):
        ready = await client.get(f"{address}/v2/health/ready")
        ids = (await client.get(f"{address}/v1/ids")).json() if ready.status_code == httpx.codes.OK else {}
        return (ids.get("bundle_id"), ids.get("generation_id") or "") == (record.bundle_id, record.generation_id)
    return False


def _has_given_up(process: ProcessObserved) -> bool:
    """It ended by itself, as often as it may. One that was stopped, or lost, may run again."""
    return process.exit is not None and process.exit.reason not in {"Stopped", "Lost"}


def _failure(process: ProcessObserved) -> str:
    end = process.exit
    assert end is not None
    how = f"signal {end.signal}" if end.signal else f"exit code {end.code}"
    said = end.message or end.last_lines or "it wrote nothing"
    return f"the server ended with {how} ({process.starts} starts): {said}"[:1024]


def _replicas(directory: Path) -> list[Path]:
    return sorted(directory.glob("replica-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _lock_name(key: str) -> str:
    return f"stacks/{key}"

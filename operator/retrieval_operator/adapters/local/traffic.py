"""Traffic on this machine: a proxy per object on one loopback port, and the file that says which stack is live.

    traffic/<ns>/<name>.json   {owner, version, port, live: StackRecord, stack_file, previous, switched_at}

The file is the champion's truth. A switch is its atomic replacement under the object's traffic lock; the proxy looks
at it for each new connection.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any

from retrieval_operator.adapters.local import loopback, proxy
from retrieval_operator.adapters.local.home import LocalHome, read_json, write_json
from retrieval_operator.adapters.local.loopback import HOST
from retrieval_operator.adapters.local.processes import Command, Restarts, Supervisor
from retrieval_operator.adapters.local.programs import clean_environment
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.pod import Pod
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import TrafficObserved
from retrieval_operator.ports import Rejected, Retryable, Stale

_LISTEN_TIMEOUT_S = 10.0
_NEVER = "0"  # the version of an object that was never switched


class LocalTraffic:
    """Fills the port Traffic.

    `preferred_ports` maps `namespace/name` to the port a person asked for; it counts when the address is made.
    `repairs`: observing also starts a proxy again that is gone with its wrapper (as after a reboot).
    """

    def __init__(
        self,
        home: LocalHome,
        supervisor: Supervisor,
        *,
        repairs: bool,
        preferred_ports: Mapping[str, int] | None = None,
    ) -> None:
        self._home = home
        self._supervisor = supervisor
        self._repairs = repairs
        self._preferred_ports = dict(preferred_ports or {})

    async def observe(self, model: RetrievalModel) -> TrafficObserved:
        document = self._read(model)
        if document is None:
            return TrafficObserved(version=_NEVER)
        if self._repairs:
            await asyncio.to_thread(self._start_proxy, model.key, document["port"])
        return TrafficObserved(
            live=StackRecord.model_validate(document["live"]),
            previous=document["previous"],
            switched_at=document["switched_at"],
            address=_address(document["port"]),
            version=document["version"],
        )

    async def switch(self, model: RetrievalModel, record: StackRecord, observed_version: str, now: int) -> None:
        await asyncio.to_thread(self._switch, model, record, observed_version, now)

    async def close(self, model: RetrievalModel) -> None:
        await asyncio.to_thread(self._close, model)

    def _switch(self, model: RetrievalModel, record: StackRecord, observed_version: str, now: int) -> None:
        with self._home.locked(lock_name(model.key)):
            before = self._read(model)
            if before and before["live"] == record.document():
                return
            version = before["version"] if before else _NEVER
            if version != observed_version:
                raise Stale(f"the traffic of {model.key} is at version {version}, not {observed_version}")
            stack_file = self._home.stack(model.key, record.stack) / "stack.json"
            if not stack_file.exists():
                raise Stale(f"stack {record.stack} of {model.key} does not exist any more")
            if before and before["live"]["stack"] == record.stack:
                relabelled = {"live": record.document(), "version": str(int(version) + 1)}
                write_json(self._home.traffic_file(model.key), before | relabelled)
                return
            port = before["port"] if before else self._new_port(model.key)
            self._have_it_listen(model.key, port)
            write_json(
                self._home.traffic_file(model.key),
                {
                    "owner": model.metadata.uid,
                    "version": str(int(version) + 1),
                    "port": port,
                    "live": record.document(),
                    "stack_file": str(stack_file),
                    "previous": before["live"]["stack"] if before else "",
                    "switched_at": now,
                },
            )

    def _close(self, model: RetrievalModel) -> None:
        with self._home.locked(lock_name(model.key)):
            path = self._home.traffic_file(model.key)
            document = read_json(path)
            if document and document["owner"] != model.metadata.uid:
                return  # a newer object of the same name has it
            self._supervisor.remove(self._home.proxy(model.key))
            path.unlink(missing_ok=True)

    def _new_port(self, key: str) -> int:
        """The port a person prefers, else a free one. An earlier proxy of this name makes way."""
        self._supervisor.remove(self._home.proxy(key))
        preferred = self._preferred_ports.get(key)
        if preferred is None:
            return loopback.choose(f"{self._home.root}/traffic/{key}", set())
        if not loopback.is_free(preferred):
            raise Rejected(
                f"port {preferred} on {HOST}, wanted as the address of {key}, is used by "
                f"{loopback.owner(preferred)}; end that process or choose another port"
            )
        return preferred

    def _start_proxy(self, key: str, port: int) -> None:
        """Start the proxy unless its wrapper runs; that one starts it again as often as it must."""
        directory = self._home.proxy(key)
        process = self._supervisor.observe(directory)
        if process is None or process.state != "Running":
            self._supervisor.restart(directory, self._command(key, port))

    def _have_it_listen(self, key: str, port: int) -> None:
        """Start the proxy and wait until it listens. Raises Retryable when it does not."""
        self._start_proxy(key, port)
        deadline = time.monotonic() + _LISTEN_TIMEOUT_S
        while loopback.is_free(port):
            if time.monotonic() >= deadline:
                log = self._home.proxy(key) / "log"
                raise Retryable(f"the proxy of {key} does not listen on port {port}; see {log}")
            time.sleep(0.01)

    def _command(self, key: str, port: int) -> Command:
        return Command(
            argv=[sys.executable, "-I", "-S", proxy.__file__, str(self._home.traffic_file(key)), HOST, str(port)],
            environment=clean_environment(Pod()),
            grace_s=1.0,  # it has nothing to finish: connections end with it
            restarts=Restarts(backoff_s=0.05, max_backoff_s=2.0, healthy_s=5.0),
        )

    def _read(self, model: RetrievalModel) -> dict[str, Any] | None:
        """The traffic of this very object. Raises Rejected when it cannot be read: the champion is not guessed."""
        document = read_json(self._home.traffic_file(model.key))
        return document if document and document["owner"] == model.metadata.uid else None


def lock_name(key: str) -> str:
    """The lock that a switch and the removal of a stack share."""
    return f"traffic/{key}"


def live_stack(home: LocalHome, key: str) -> str:
    """The id of the stack that the object's traffic points at, "" for none."""
    document = read_json(home.traffic_file(key))
    return str(document["live"]["stack"]) if document else ""


def _address(port: int) -> str:
    return f"http://{HOST}:{port}"

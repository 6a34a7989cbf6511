"""`make bench-operator`: what the operator costs an API server and its node with 100 objects, as tables.

A real etcd and kube-apiserver, the operator as a process with the rights of the chart; what would run for an object is
simulated at its ports (tests/e2e/operator/simulated_operator.py), so children (Jobs, pods, Services) cost nothing here.
Requests and reaction times are read from the API server's audit log. Exit code 3: not run, and why.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import audit
import lone_api_server
import numpy as np
import psutil
import typer
from audit import Request
from native_cluster.binaries import ready_programs
from native_cluster.cli import NOT_RUN
from native_cluster.layout import NotRun
from operator_process import SIMULATED, USER, Cluster, Operator, install_definition, limit_to_rights, until
from rich.console import Console
from rich.table import Table

OBJECTS = 100
CHANGES = 120
# Whether the operator keeps up or not: a slow one is not asked less often. Each change is a whole life of some 25
# requests; on two cores that the API server shares, 100 lives at once took 34 s.
CHANGE_EVERY_S = 1.0
TAKEN_UP_WITHIN_S = 300
QUIET_S = 20  # after the last life: the first resync, 15 s after the start, is behind it, too
MB = 10**6
# What a real operator process loads (cli/kubernetes_running.py), and nothing done with it.
IMPORTS = "import retrieval_operator.cli, retrieval_operator.kopf_app, retrieval_operator.kubernetes_mode"

console = Console(highlight=False)


@dataclass(frozen=True)
class Phase:
    """A stretch of time, in seconds since the epoch, and the operator's requests in it.

    `load`: the machine's load average when it ended; above the number of cores, times say little about the operator.
    """

    began: float
    ended: float
    requests: Sequence[Request]
    load: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def per_second(self) -> float:
        return len(self.requests) / self.seconds

    @property
    def burst(self) -> int:
        """The most requests that began within one second."""
        moments = np.sort([request.asked_at for request in self.requests])
        return int((np.searchsorted(moments, moments + 1.0) - np.arange(len(moments))).max(initial=0))


@dataclass(frozen=True)
class Memory:
    """Resident, in MB."""

    imports: float
    taken_up: float
    idle: float
    changed: float
    peak: float


class Bench:
    """An API server, the objects, and one operator process."""

    def __init__(self, kubeconfig: Path, scratch: Path) -> None:
        self.log = kubeconfig.parent / lone_api_server.AUDIT_LOG
        self.cluster = Cluster(kubeconfig)
        self._account = limit_to_rights(kubeconfig, scratch / "operator.kubeconfig")
        self._operator_log = scratch / "operator.log"
        self.names = [f"feed-{number:03}" for number in range(OBJECTS)]

    def create_objects(self) -> None:
        for name in self.names:
            self.cluster.create(name, rollback={"windowSeconds": 0})

    def start(self) -> Operator:
        return Operator(SIMULATED, self._account, self._operator_log, RETRIEVAL_OPERATOR_LOG_LEVEL="warning")

    def phase(self, began: float) -> Phase:
        """From then until now."""
        ended = time.time()
        ours = [request for request in audit.read(self.log) if request.user == USER]
        within = [request for request in ours if began <= request.asked_at < ended]
        return Phase(began, ended, within, os.getloadavg()[0])

    def reactions(self, since: float) -> list[float]:
        """Seconds from each change of a spec to the operator's first write for that object."""
        requests = [request for request in audit.read(self.log) if request.asked_at >= since]
        changes = [request for request in requests if request.user != USER and request.verb == "patch" and request.name]
        writes = [request for request in requests if request.user == USER and request.is_write]
        return [_first_write(change, writes) - change.asked_at for change in changes]

    def words(self) -> str:
        return self._operator_log.read_text()


def _first_write(change: Request, writes: Sequence[Request]) -> float:
    """When it was asked for: a status, or an event, whose name begins with that of its object."""
    about = [
        write.asked_at for write in writes if write.name == change.name or write.name.startswith(f"{change.name}.")
    ]
    return min((asked_at for asked_at in about if asked_at >= change.asked_at), default=float("inf"))


def take_up(bench: Bench, operator: Operator) -> Phase:
    """From the start of the process until every object is promoted."""
    began = time.time()
    deadline = time.monotonic() + TAKEN_UP_WITHIN_S
    missing = set(bench.names)
    while missing:
        if operator.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"bench: {len(missing)} objects are not promoted; the operator said\n{bench.words()}")
        time.sleep(1)
        missing = {name for name in missing if not bench.cluster.promoted(name)}
    return bench.phase(began)


def change(bench: Bench) -> Phase:
    """One spec after the other gets another data revision."""
    began = time.time()
    due = time.monotonic()
    for number in range(CHANGES):
        due += CHANGE_EVERY_S
        time.sleep(max(0.0, due - time.monotonic()))
        revision = f"{2 + number // OBJECTS}"
        bench.cluster.patch(bench.names[number % OBJECTS], {"spec": {"data": {"revision": revision}}})
    for name in bench.names:
        until(lambda name=name: bench.cluster.promoted(name), f"{name} is promoted again")
    return bench.phase(began)


def import_cost_mb() -> float:
    program = f"{IMPORTS}; import psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / MB


def resident_mb(operator: Operator) -> float:
    return psutil.Process(operator.process.pid).memory_info().rss / MB


def peak_mb(operator: Operator) -> float:
    lines = Path(f"/proc/{operator.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmHWM:"))


def measure(kubeconfig: Path, scratch: Path, idle_s: float) -> None:
    install_definition(kubeconfig)
    bench = Bench(kubeconfig, scratch)
    bench.create_objects()
    operator = bench.start()
    try:
        taken_up = take_up(bench, operator)
        after_start = resident_mb(operator)
        console.print(f"{OBJECTS} objects are promoted; watching them at rest for {QUIET_S + idle_s:.0f} s ...")
        time.sleep(QUIET_S)
        began = time.time()
        time.sleep(idle_s)
        idle = bench.phase(began)
        at_rest = resident_mb(operator)
        console.print(f"{CHANGES} changes, one each {CHANGE_EVERY_S} s ...")
        changed = change(bench)
        memory = Memory(import_cost_mb(), after_start, at_rest, resident_mb(operator), peak_mb(operator))
    finally:
        operator.stop()
    console.print(table_of(taken_up, idle, changed, bench.reactions(changed.began), memory))
    console.print(requests_table(idle))
    if refused := audit.compare(audit.read(bench.log), USER, "default").refused:
        console.print("Refused:", *refused, sep="\n  ")


def table_of(taken_up: Phase, idle: Phase, changed: Phase, reactions: Sequence[float], memory: Memory) -> Table:
    table = Table(title=f"The operator with {OBJECTS} objects", title_justify="left")
    for name in ("what", "measured", "goal", "share of the goal"):
        table.add_column(name, justify="left" if name == "what" else "right")

    def row(what: str, measured: float, goal: float | None = None, *, digits: int = 0) -> None:
        against = (f"{goal:g}", f"{measured / goal:.0%}") if goal else ()
        table.add_row(what, f"{measured:.{digits}f}", *against)

    p50, p99 = np.percentile(reactions, [50, 99])
    row("at rest, API requests per second", idle.per_second, 0.1, digits=3)
    row("at rest, resident memory (MB)", memory.idle, 150)
    row("  after the start (MB)", memory.taken_up)
    row("  after the changes (MB)", memory.changed)
    row("  at most (MB)", memory.peak)
    row("  of it bare imports (MB)", memory.imports)
    row(f"change to first write, p50 of {len(reactions)} (s)", p50, digits=3)
    row("change to first write, p99 (s)", p99, 1, digits=3)
    row("change to first write, longest (s)", max(reactions), digits=3)
    row("start until all are promoted (s)", taken_up.seconds)
    row("  API requests per object", len(taken_up.requests) / OBJECTS, digits=1)
    row("  API requests per second", taken_up.per_second, digits=1)
    row("  most requests in one second", taken_up.burst)
    row("API requests per change", len(changed.requests) / CHANGES, digits=1)
    row("load average after the changes", changed.load, digits=1)
    return table


def requests_table(idle: Phase) -> Table:
    table = Table(title=f"Requests of the {idle.seconds:.0f} s at rest", title_justify="left")
    table.add_column("request")
    table.add_column("times", justify="right")
    counted = Counter(f"{request.verb} {request.resource}" for request in idle.requests)
    for what, times in counted.most_common():
        table.add_row(what, str(times))
    return table


def main(
    idle_seconds: Annotated[
        float, typer.Option(min=60, help="How long to watch it at rest; 660 has each watch and resync in it once.")
    ] = 120,
) -> None:
    """The operator with 100 objects on a real API server, measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by TERM"))  # it must end what was started, too
    try:
        binaries = ready_programs("etcd", "kube-apiserver")
    except NotRun as reason:
        console.print(f"not run: {reason}", soft_wrap=True)
        raise typer.Exit(NOT_RUN) from reason
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began; a single run")
    with tempfile.TemporaryDirectory(prefix="retrieval-bench-") as scratch:
        home = Path(scratch) / "api-server"
        home.mkdir()
        with lone_api_server.running(binaries, home) as kubeconfig:
            measure(kubeconfig, Path(scratch), idle_seconds)


if __name__ == "__main__":
    typer.run(main)

"""`make bench-operator`: what the operator costs an API server and its node with 100 objects, as tables.

A real etcd and kube-apiserver, the operator as a process with the rights of the chart; what would run for an object is
simulated at its ports (tests/e2e/operator/simulated_operator.py), so children (Jobs, pods, Services) cost nothing here.
One process takes the objects up, rests and follows changes; a second finds all promoted, as after most restarts.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import audit
import lone_api_server
import psutil
import typer
from audit import Request
from native_cluster.binaries import ready_programs
from native_cluster.cli import NOT_RUN
from native_cluster.layout import NotRun
from operator_process import SIMULATED, USER, Cluster, Operator, install_definition, limit_to_rights, until
from operator_report import CHANGES, OBJECTS, PERIODIC_S, Memory, Phase, Restart, tables
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

# Whether the operator keeps up or not: a slow one is not asked less often. Each change is a whole life of some 25
# requests; on two cores that the API server shares, 100 lives at once took 34 s.
CHANGE_EVERY_S = 1.0
TAKEN_UP_WITHIN_S = 300
QUIET_S = 20  # after the last promotion: the first resync, 15 s after the start, is behind it, too
CHANGED_QUIET_S = 90  # former stacks are removed when their connections have ended, 60 s after the switch
RESTARTED_S = 60  # the first resync is in it
PROGRESS_EVERY_S = 60
MB = 10**6
# What a real operator process loads (cli/kubernetes_running.py), and nothing done with it.
IMPORTS = "import retrieval_operator.cli, retrieval_operator.kopf_app, retrieval_operator.kubernetes_mode"

console = Console(highlight=False)


class Bench:
    """An API server, the objects, and one operator process after the other."""

    def __init__(self, kubeconfig: Path, scratch: Path) -> None:
        self.log = kubeconfig.parent / lone_api_server.AUDIT_LOG
        self.cluster = Cluster(kubeconfig)
        self._account = limit_to_rights(kubeconfig, scratch / "operator.kubeconfig")
        self._scratch = scratch
        self.names = [f"feed-{number:03}" for number in range(OBJECTS)]

    def create_objects(self) -> None:
        for name in self.names:
            self.cluster.create(name, rollback={"windowSeconds": 0})

    @contextmanager
    def operator(self, name: str) -> Iterator[Operator]:
        """A process that finds what the former one left behind its ports."""
        settings = {"SIMULATED_PORTS": str(self._scratch / "ports.json"), "RETRIEVAL_OPERATOR_LOG_LEVEL": "warning"}
        operator = Operator(SIMULATED, self._account, self._scratch / f"{name}.log", **settings)
        try:
            yield operator
        finally:
            operator.stop()
        if code := operator.process.returncode:
            raise failure(f"the operator ended with {code}", operator)

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


def _first_write(change: Request, writes: Sequence[Request]) -> float:
    """When it was asked for: a status, or an event, whose name begins with that of its object."""
    about = [
        write.asked_at for write in writes if write.name == change.name or write.name.startswith(f"{change.name}.")
    ]
    return min((asked_at for asked_at in about if asked_at >= change.asked_at), default=float("inf"))


def failure(what: str, operator: Operator) -> SystemExit:
    return SystemExit(f"bench: {what}; the operator said\n{operator.log.read_text()}")


def rest(operator: Operator, seconds: float) -> None:
    """Let so much time pass, and tell each minute how much is left."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if left > PROGRESS_EVERY_S:
            console.print(f"  {left:.0f} s left")
        time.sleep(min(left, PROGRESS_EVERY_S))
        if operator.process.poll() is not None:
            raise failure("the operator ended at rest", operator)


def take_up(bench: Bench, operator: Operator) -> Phase:
    """From the start of the process until every object is promoted."""
    began = time.time()
    deadline = time.monotonic() + TAKEN_UP_WITHIN_S
    missing = set(bench.names)
    while missing:
        if operator.process.poll() is not None or time.monotonic() > deadline:
            raise failure(f"{len(missing)} objects are not promoted", operator)
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


def restart(bench: Bench) -> Restart:
    """A new process, with every object promoted by the former one."""
    began = time.time()
    with bench.operator("restarted") as operator:
        rest(operator, RESTARTED_S)
        phase = bench.phase(began)
        resident, peak = resident_mb(operator), peak_mb(operator)
        passes, actions = work_of(operator)
    return Restart(phase, resident, peak, passes, actions)


def work_of(operator: Operator) -> tuple[Counter[str], int]:
    """How many of its passes ended in which way so far, and the actions of all of them."""
    page = operator.page(operator.metrics_port, "/metrics")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    passes = Counter[str]()
    for sample in samples:
        if sample.name == "retrieval_operator_reconcile_total":
            passes[sample.labels["outcome"]] += int(sample.value)
    return passes, int(sum(sample.value for sample in samples if sample.name == "retrieval_operator_actions_total"))


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
    with bench.operator("first") as operator:
        taken_up = take_up(bench, operator)
        after_start = resident_mb(operator)
        console.print(f"{OBJECTS} objects are promoted; watching them at rest for {QUIET_S + idle_s:.0f} s ...")
        rest(operator, QUIET_S)
        began = time.time()
        rest(operator, idle_s)
        idle = bench.phase(began)
        at_rest = resident_mb(operator)
        console.print(f"{CHANGES} changes, one each {CHANGE_EVERY_S} s ...")
        changed = change(bench)
        reactions = bench.reactions(changed.began)
        memory = Memory(import_cost_mb(), after_start, at_rest, resident_mb(operator), peak_mb(operator))
        console.print(f"Waiting {CHANGED_QUIET_S} s until nothing is left to do ...")
        rest(operator, CHANGED_QUIET_S)
    console.print(f"Another process, for {RESTARTED_S} s ...")
    restarted = restart(bench)
    console.print(*tables(taken_up, idle, changed, reactions, memory, restarted), sep="\n")
    if refused := audit.compare(audit.read(bench.log), USER, "default").refused:
        console.print("Refused:", *refused, sep="\n  ")


def main(
    idle_seconds: Annotated[
        float, typer.Option(min=60, help="How long to watch it at rest; 660 has each watch and resync in it once.")
    ] = PERIODIC_S,
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

"""What bench_operator.py measured, and how it reads: tables with goals and ratios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from audit import Request
from rich.table import Table

OBJECTS = 100
CHANGES = 120
# A watch and the time between two resyncs are 600 s each (kopf_app.py, kubernetes_mode.py): so long at rest has both.
PERIODIC_S = 660


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


@dataclass(frozen=True)
class Restart:
    """A process's first minute, all objects promoted by the one before. Memory in MB; passes by how they ended."""

    phase: Phase
    resident: float
    peak: float
    passes: Mapping[str, int]
    actions: int

    @property
    def leads_after(self) -> float:
        """Seconds from the start of the process until the Lease is its own; infinite, if it was not."""
        taken = [
            request.answered_at
            for request in self.phase.requests
            if request.resource == "leases" and request.is_write and request.code < 300
        ]
        return min(taken, default=float("inf")) - self.phase.began

    @property
    def creations(self) -> int:
        """At the API server, events included; what the simulated ports make is among the actions."""
        return sum(request.verb == "create" for request in self.phase.requests)

    @property
    def status_writes(self) -> int:
        return sum(request.is_write and request.subresource == "status" for request in self.phase.requests)


class Rows:
    """A table of numbers; those with a goal, which is the most that is well, beside their share of it."""

    def __init__(self, title: str) -> None:
        self.table = Table(title=title, title_justify="left")
        for name in ("what", "measured", "goal", "share of the goal"):
            self.table.add_column(name, justify="left" if name == "what" else "right")

    def row(self, what: str, measured: float, goal: float | None = None, *, digits: int = 0) -> None:
        against = () if goal is None else (f"{goal:g}", _share(measured, goal))
        self.table.add_row(what, f"{measured:.{digits}f}", *against)


def _share(measured: float, goal: float) -> str:
    if goal == 0:
        return "met" if measured == 0 else "missed"
    return f"{measured / goal:.0%}"


def tables(
    taken_up: Phase, idle: Phase, changed: Phase, reactions: Sequence[float], memory: Memory, restarted: Restart
) -> list[Table]:
    return [_first_table(taken_up, idle, changed, reactions, memory), _restart_table(restarted), _requests_table(idle)]


def _first_table(taken_up: Phase, idle: Phase, changed: Phase, reactions: Sequence[float], memory: Memory) -> Table:
    rows = Rows(f"The operator with {OBJECTS} objects")
    row = rows.row
    p50, p99 = np.percentile(reactions, [50, 99])
    short = "" if round(idle.seconds) >= PERIODIC_S else " (too short for all that is periodic)"
    row(f"at rest, API requests per second{short}", idle.per_second, 0.1, digits=3)
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
    return rows.table


def _restart_table(restart: Restart) -> Table:
    """Its goal for requests is a gut feeling: a stampede is what asks for each object, so there are fewer."""
    phase = restart.phase
    rows = Rows(f"The first {phase.seconds:.0f} s of a new process, all {OBJECTS} objects promoted before")
    row = rows.row
    row("start until it leads (s)", restart.leads_after, digits=1)
    row("API requests", len(phase.requests), OBJECTS)
    row("  most in one second", phase.burst)
    row("resident memory (MB)", restart.resident, 150)
    row("  at most (MB)", restart.peak)
    row(f"passes that found nothing to do, of {sum(restart.passes.values())}", restart.passes.get("settled", 0))
    row("  actions of all passes", restart.actions, 0)
    row("  objects and events created", restart.creations, 0)
    row("  statuses written", restart.status_writes, 0)
    row("load average", phase.load, digits=1)
    return rows.table


def _requests_table(idle: Phase) -> Table:
    table = Table(title=f"Requests of the {idle.seconds:.0f} s at rest", title_justify="left")
    table.add_column("request")
    table.add_column("times", justify="right")
    counted = Counter(f"{request.verb} {request.resource}" for request in idle.requests)
    for what, times in counted.most_common():
        table.add_row(what, str(times))
    return table

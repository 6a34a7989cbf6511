"""What the simulated ports keep from one operator process to the next: their states, as one file of JSON.

A cluster and an MLflow outlive the operator; these ports are in its process. A program that runs when the process ends
ends with it and leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.adapters.memory.registry import Entries
from retrieval_operator.domain.observed import RunObserved, StackObserved, TrafficObserved, VersionObserved
from retrieval_operator.domain.workloads import WorkloadObserved

Names = tuple[str, str]


@dataclass(frozen=True)
class States:
    """Of the fakes; in pairs what they keep by two names, since a key of JSON is one."""

    workloads: list[tuple[Names, WorkloadObserved]]
    stacks: list[tuple[Names, StackObserved]]
    traffic: dict[str, TrafficObserved]
    runs: list[tuple[Names, RunObserved]]
    owners: dict[str, str]
    versions: dict[str, dict[str, VersionObserved]]
    aliases: dict[str, dict[str, str]]


_FORMAT = TypeAdapter(States)


def save(world: MemoryWorld, path: Path) -> None:
    entries = world.registry._now
    states = States(
        workloads=[(names, seen) for names, seen in world.workloads._now.items() if seen.state != "Running"],
        stacks=list(world.stacks._now.items()),
        traffic=dict(world.traffic._now),
        runs=list(entries.runs.items()),
        owners=dict(entries.owners),
        versions={name: dict(versions) for name, versions in entries.versions.items()},
        aliases={name: dict(aliases) for name, aliases in entries.aliases.items()},
    )
    path.write_bytes(_FORMAT.dump_json(states))


def load(world: MemoryWorld, path: Path) -> None:
    states = _FORMAT.validate_json(path.read_bytes())
    world.workloads._change(dict(states.workloads))
    world.stacks._change(dict(states.stacks))
    world.traffic._change(states.traffic)
    world.registry._change(Entries(dict(states.runs), states.owners, states.versions, states.aliases))
    world.registry._run_count = len(states.runs)  # no run is ever removed

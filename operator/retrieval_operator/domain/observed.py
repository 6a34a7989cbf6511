"""The observed world of one object: what `decide` is given, gathered by the controller through the ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.workloads import WorkloadObserved


@dataclass(frozen=True, kw_only=True)
class StackObserved:
    """A stack that exists (an InferenceService, or a local server).

    Ready means that `ready_replicas` servers of this very stack run, started with its EXPECTED ids and matching them.
    `replicas` servers were asked for: exactly so many, or with an autoscaler (`max_replicas` > 0) at least so many and
    at most `max_replicas`. `address` reaches this stack directly, before any traffic does. `failed` holds a sentence
    when it cannot become ready by itself (it exits, its image is missing); "" while it may. `waits_for` says in a
    sentence what servers that are not ready lack, "" when that is not known. `complete` False: only a part of it is
    there, since its creation or removal was cut; `create` adds what is missing. `image` is what its servers run, by
    digest; "" when that is not known.
    """

    record: StackRecord
    ready_replicas: int
    replicas: int
    address: str
    created_at: int
    failed: str = ""
    max_replicas: int = 0
    waits_for: str = ""
    complete: bool = True
    image: str = ""

    @property
    def is_ready(self) -> bool:
        return self.ready_replicas >= 1 and not self.failed


@dataclass(frozen=True, kw_only=True)
class TrafficObserved:
    """The champion's truth: which stack new connections go to.

    `live` None: nothing was promoted yet, or somebody removed the address (then it is "") or made it lead nowhere.
    `previous` is the stack that was live before, "" for none. `switched_at` in seconds since the epoch. `version`
    guards the switch against a stale view.
    """

    live: StackRecord | None = None
    previous: str = ""
    switched_at: int = 0
    address: str = ""
    version: str = ""


RunStatus = Literal["Running", "Finished", "Failed", "Killed"]


@dataclass(frozen=True, kw_only=True)
class RunObserved:
    """An MLflow run of this object. `report` is the step's last file, None until it is complete.

    `status` is for people: with a report the registry itself sets Finished, else `run_states` says what it should be.
    """

    run_id: str
    step: str
    key: str
    report: Mapping[str, Any] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    status: RunStatus = "Running"


@dataclass(frozen=True, kw_only=True)
class VersionObserved:
    """An MLflow model version of this object, one per bundle."""

    number: str
    bundle_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class RegistryObserved:
    """Runs by (step, key) joined with ":", versions by bundle id, aliases by name (to version numbers)."""

    runs: Mapping[str, RunObserved] = field(default_factory=dict)
    versions: Mapping[str, VersionObserved] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    page: str = ""

    def report(self, step: str, key: str) -> Mapping[str, Any] | None:
        run = self.runs.get(f"{step}:{key}")
        return run.report if run else None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in the surroundings that a person must mend: which dependency, and a sentence with the remedy.

    `holds_back` False: worth telling, but work may do without it and is started all the same. "request" is what was
    asked of the surroundings and refused. `keeps_files`: it is not known what needs which files, so none may go.
    """

    dependency: Literal[
        "registry",
        "program",
        "namespace",
        "address",
        "storage",
        "secret",
        "podSecurity",
        "quota",
        "kserve",
        "trainingOperator",
        "request",
    ]
    message: str
    holds_back: bool = True
    keeps_files: bool = False


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything seen in one pass. `registry` None: not reachable (then `problems` says so); never guessed.

    `storage_id` is another one when the object's storage was replaced by an empty one; "" when that cannot be told.
    """

    workloads: tuple[WorkloadObserved, ...] = ()
    stacks: Mapping[str, StackObserved] = field(default_factory=dict)
    traffic: TrafficObserved = field(default_factory=TrafficObserved)
    registry: RegistryObserved | None = None
    problems: tuple[Problem, ...] = ()
    storage_id: str = ""

"""A pure world that obeys a plan's actions: for `plan`, which previews what would happen, and for the tests.

Work succeeds after one pass with the report that `Outcomes` gives; stacks become ready after one pass. Nothing here
guesses at quality: a preview assumes that every step succeeds and every gate passes, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from retrieval_operator.api.constants import FINALIZER, TAG_REPORT
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import (
    Observed,
    RegistryObserved,
    RunObserved,
    StackObserved,
    TrafficObserved,
    VersionObserved,
)
from retrieval_operator.domain.plan import (
    Action,
    CreateStack,
    DeleteStack,
    DeleteWorkload,
    DescribeVersion,
    EmitEvent,
    EnsureRun,
    Plan,
    RegisterVersion,
    ScaleStack,
    SetAlias,
    SetFinalizer,
    SetRunStatus,
    StartWorkload,
    StopTraffic,
    StopWorkload,
    SwitchTraffic,
    TagRun,
)
from retrieval_operator.domain.simulated_reports import Known, known_from, passing_report
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec

_LONG_ENOUGH = 200  # passes; the longest life seen needs about 30


@dataclass(frozen=True)
class Outcome:
    """How one attempt ends: with a report (success), or with an exit code and a message."""

    report: Mapping[str, Any] | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""


Outcomes = Callable[[WorkloadSpec], Outcome]


def all_pass(workload: WorkloadSpec) -> Outcome:
    """Every step succeeds; every gate's value is 1 and no worse than the champion's."""
    return Outcome(report=passing_report(workload))


@dataclass
class World:
    """A mutable world. `tick` lets what runs finish; `apply` performs an action as an idempotent adapter would."""

    outcomes: Outcomes = all_pass
    now: int = 1_000_000
    registry_is_up: bool = True
    storage_id: str = ""
    workloads: dict[str, WorkloadObserved] = field(default_factory=dict)
    specs: dict[str, WorkloadSpec] = field(default_factory=dict)
    stacks: dict[str, StackObserved] = field(default_factory=dict)
    traffic: TrafficObserved = field(default_factory=TrafficObserved)
    runs: dict[str, RunObserved] = field(default_factory=dict)
    versions: dict[str, VersionObserved] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    events: list[EmitEvent] = field(default_factory=list)
    finalizer: bool | None = None

    @classmethod
    def like(cls, observed: Observed, now: int) -> World:
        """A copy of what was observed, to try out what would happen to it. Whatever starts there passes.

        Running workloads are left out: the same attempt is started again. A registry that is away counts as empty.
        """
        registry = observed.registry or RegistryObserved()
        world = cls(
            now=now,
            workloads={w.name: w for w in observed.workloads if w.state != "Running"},
            stacks=dict(observed.stacks),
            traffic=replace(observed.traffic, version="0"),
            runs=dict(registry.runs),
            versions=dict(registry.versions),
            aliases=dict(registry.aliases),
        )
        world.outcomes = lambda workload: Outcome(report=passing_report(workload, world._known()))
        return world

    def _known(self) -> Known:
        records = [stack.record for stack in self.stacks.values()]
        return known_from(self.runs.values(), [*records, self.traffic.live] if self.traffic.live else records)

    def observe(self) -> Observed:
        registry = RegistryObserved(runs=dict(self.runs), versions=dict(self.versions), aliases=dict(self.aliases))
        return Observed(
            workloads=tuple(self.workloads.values()),
            stacks=dict(self.stacks),
            traffic=self.traffic,
            registry=registry if self.registry_is_up else None,
            storage_id=self.storage_id,
        )

    def after_pass(self, model: RetrievalModel, status: RetrievalModelStatus) -> RetrievalModel:
        """The object as it is read next: with this status, and with the finalizer as it was set here."""
        if self.finalizer is None:
            return with_status(model, status)
        finalizers = [FINALIZER] if self.finalizer else []
        metadata = model.metadata.model_copy(update={"finalizers": finalizers})
        return with_status(model.model_copy(update={"metadata": metadata}), status)

    def tick(self, seconds: int = 1) -> None:
        """Time passes: every running attempt ends as `outcomes` says, every stack becomes ready."""
        self.now += seconds
        for name, workload in self.workloads.items():
            if workload.state == "Running":
                self._finish(name, workload)
        for stack, found in self.stacks.items():
            if not found.failed:
                self.stacks[stack] = replace(found, ready_replicas=found.replicas)

    def _finish(self, name: str, workload: WorkloadObserved) -> None:
        spec = self.specs[name]
        outcome = self.outcomes(spec)
        if outcome.report is not None and spec.run_id:
            key = next(key for key, run in self.runs.items() if run.run_id == spec.run_id)
            self.runs[key] = replace(self.runs[key], report=outcome.report, status="Finished")
        state: Literal["Succeeded", "Failed"] = "Succeeded" if outcome.exit_code == 0 else "Failed"
        self.workloads[name] = replace(
            workload,
            state=state,
            exit_code=outcome.exit_code,
            reason=outcome.reason,
            message=outcome.message,
            finished_at=self.now,
        )

    def apply(self, action: Action) -> None:  # noqa: C901, PLR0912 one case per kind of action, in the order of plan.py
        match action:
            case EnsureRun():
                self._ensure_run(action)
            case TagRun():
                self._tag(action)
            case SetRunStatus():
                key = next(key for key, run in self.runs.items() if run.run_id == action.run_id)
                self.runs[key] = replace(self.runs[key], status=action.status)
            case RegisterVersion():
                self._register(action)
            case DescribeVersion():
                self._describe(action)
            case SetAlias():
                self.aliases.pop(action.alias, None)
                if action.version:
                    self.aliases[action.alias] = action.version
            case StartWorkload():
                self._start(action.workload)
            case StopWorkload():
                self._stop(action.name)
            case DeleteWorkload():
                self.workloads.pop(action.name, None)
            case CreateStack():
                self._create_stack(action)
            case ScaleStack():
                scaled = replace(self.stacks[action.stack], replicas=action.replicas, max_replicas=action.max_replicas)
                self.stacks[action.stack] = scaled
            case DeleteStack():
                if self.traffic.live is None or self.traffic.live.stack != action.stack:
                    self.stacks.pop(action.stack, None)
            case SwitchTraffic():
                self._switch(action.record, action.observed_version)
            case StopTraffic():
                self.traffic = TrafficObserved()
            case EmitEvent():
                self.events.append(action)
            case SetFinalizer():
                self.finalizer = action.present

    def _ensure_run(self, action: EnsureRun) -> None:
        key = f"{action.step}:{action.key}"
        if key not in self.runs:
            self.created.append(f"run {key}")
            self.runs[key] = RunObserved(
                run_id=f"run-{len(self.runs)}", step=action.step, key=action.key, tags=action.tags
            )

    def _tag(self, action: TagRun) -> None:
        key = next(key for key, run in self.runs.items() if run.run_id == action.run_id)
        run = replace(self.runs[key], tags=_tagged(self.runs[key].tags, action.tags))
        withdrawn = action.tags.get(TAG_REPORT) == ""
        self.runs[key] = replace(run, report=None) if withdrawn else run

    def _register(self, action: RegisterVersion) -> None:
        if action.bundle_id not in self.versions:
            number = str(len(self.versions) + 1)
            self.created.append(f"version of {action.bundle_id}")
            self.versions[action.bundle_id] = VersionObserved(
                number=number, bundle_id=action.bundle_id, tags=dict(action.tags)
            )

    def _describe(self, action: DescribeVersion) -> None:
        bundle = next(bundle for bundle, version in self.versions.items() if version.number == action.version)
        version = self.versions[bundle]
        description = version.description if action.description is None else action.description
        self.versions[bundle] = replace(version, tags=_tagged(version.tags, action.tags), description=description)

    def _start(self, workload: WorkloadSpec) -> None:
        if workload.name in self.workloads:
            return
        self.created.append(f"workload {workload.name}")
        self.specs[workload.name] = workload
        self.workloads[workload.name] = WorkloadObserved(
            name=workload.name,
            step=workload.step,
            key=workload.key,
            attempt=workload.attempt,
            state="Running",
            started_at=self.now,
        )

    def _stop(self, name: str) -> None:
        workload = self.workloads.get(name)
        if workload is not None and workload.state == "Running":
            self.workloads[name] = replace(workload, state="Failed", reason="Stopped", finished_at=self.now)

    def _create_stack(self, action: CreateStack) -> None:
        existing = self.stacks.get(action.record.stack)
        if existing is not None:
            self.stacks[action.record.stack] = replace(existing, complete=True)
            return
        self.created.append(f"stack {action.record.stack}")
        self.stacks[action.record.stack] = StackObserved(
            record=action.record,
            ready_replicas=0,
            replicas=action.replicas,
            max_replicas=action.max_replicas,
            address=f"http://{action.record.stack}",
            created_at=self.now,
        )

    def _switch(self, record: StackRecord, observed_version: str) -> None:
        live = self.traffic.live
        if observed_version != self.traffic.version or live == record:
            return
        if live is not None and live.stack == record.stack:
            self.traffic = replace(self.traffic, live=record, version=str(int(self.traffic.version) + 1))
            return
        self.created.append(f"switch to {record.stack}")
        self.traffic = TrafficObserved(
            live=record,
            previous=live.stack if live else "",
            switched_at=self.now,
            address="http://champion",
            version=str(int(self.traffic.version or "0") + 1),
        )


def _tagged(tags: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in {**tags, **changes}.items() if value}


def run_until_settled(
    model: RetrievalModel, world: World, *, passes: int = _LONG_ENOUGH
) -> list[tuple[RetrievalModel, Plan]]:
    """Decide, apply, let time pass, until a pass does nothing and nothing is in flight. Returns every pass.

    Raises AssertionError when that never happens: a decision that keeps acting on a settled world is a defect.
    """
    taken = []
    for _ in range(passes):
        plan = decide(model, world.observe(), world.now)
        taken.append((model, plan))
        for action in plan.actions:
            world.apply(action)
        model = world.after_pass(model, plan.status)
        if not plan.actions and plan.status.candidate is None:
            return taken
        if plan.status.candidate is not None and plan.status.candidate.blocked_since is not None and not plan.actions:
            return taken
        world.tick()
    raise AssertionError(f"not settled after {passes} passes; the last plan was: {taken[-1][1].why}")


def with_status(model: RetrievalModel, status: RetrievalModelStatus) -> RetrievalModel:
    return model.model_copy(update={"status": status})

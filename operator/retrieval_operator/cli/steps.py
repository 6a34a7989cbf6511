"""Actions as sentences, and the steps that lie ahead, simulated in the pure world of domain/simulate.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli.words import NOTHING
from retrieval_operator.domain import plan as plans
from retrieval_operator.domain import simulate
from retrieval_operator.domain.observed import Observed
from retrieval_operator.domain.plan import Action

_SENTENCES: Mapping[type[Action], Callable[[Any], str]] = {
    plans.EnsureRun: lambda a: f"create the MLflow run of {a.step} {a.key}",
    plans.TagRun: lambda a: f"tag MLflow run {a.run_id}: {_pairs(a.tags)}",
    plans.SetRunStatus: lambda a: f"MLflow run {a.run_id}: {a.status}",
    plans.RegisterVersion: lambda a: f"register bundle {a.bundle_id} as a model version",
    plans.DescribeVersion: lambda a: f"describe model version {a.version}",
    plans.SetAlias: lambda a: f"alias {a.alias}: {f'version {a.version}' if a.version else 'removed'}",
    plans.StartWorkload: lambda a: f"start {a.workload.program} as {a.workload.name}",
    plans.StopWorkload: lambda a: f"stop {a.name}",
    plans.DeleteWorkload: lambda a: f"remove the record and log of {a.name}",
    plans.CreateStack: lambda a: f"start stack {a.record.stack}, replicas {_replicas(a)}",
    plans.ScaleStack: lambda a: f"scale stack {a.stack} to {_replicas(a)}",
    plans.DeleteStack: lambda a: f"drain and remove stack {a.stack}",
    plans.SwitchTraffic: lambda a: f"switch new connections to stack {a.record.stack}",
    plans.StopTraffic: lambda _: "close the address",
    plans.EmitEvent: lambda a: f"tell: {a.message}",
    plans.SetFinalizer: lambda a: f"{'set' if a.present else 'remove'} the finalizer",
}
# Records and notices follow from what is shown; listing them would hide it.
_MINOR = (plans.EmitEvent, plans.TagRun, plans.SetRunStatus, plans.DescribeVersion, plans.EnsureRun)


def _replicas(action: plans.CreateStack | plans.ScaleStack) -> str:
    """`2`, and with an autoscaler `2-5`."""
    return f"{action.replicas}-{action.max_replicas}" if action.max_replicas else str(action.replicas)


def sentence(action: Action) -> str:
    """An action in the imperative, for people."""
    return _SENTENCES[type(action)](action)


def simulated_steps(model: RetrievalModel, observed: Observed, now: int) -> Iterator[tuple[str, str]]:
    """(step, sentence) of every action until all is settled, without the minor ones.

    Assumes that every step succeeds and every gate passes.
    """
    running = {workload.name for workload in observed.workloads if workload.state == "Running"}
    for before, plan in simulate.run_until_settled(model, simulate.World.like(observed, now)):
        candidate = plan.status.candidate or before.status.candidate
        for action in plan.actions:
            if not isinstance(action, _MINOR):
                yield (str(candidate.step) if candidate else NOTHING), _simulated(action, observed, running)


def _simulated(action: Action, observed: Observed, running: Collection[str]) -> str:
    """A sentence without the ids that only the simulation made up."""
    match action:
        case plans.StartWorkload(workload=work):
            return f"{work.name} is running" if work.name in running else f"start {work.program} ({work.step})"
        case plans.RegisterVersion():
            return "register the bundle as a model version"
        case plans.SetAlias(alias=alias, version=version) if version:
            known = {found.number for found in observed.registry.versions.values()} if observed.registry else set()
            return f"alias {alias}: {f'version {version}' if version in known else 'the new version'}"
        case plans.CreateStack(record=record) | plans.SwitchTraffic(record=record):
            return sentence(action).replace(record.stack, _stack_name(record.stack, observed))
        case plans.ScaleStack(stack=stack) | plans.DeleteStack(stack=stack):
            return sentence(action).replace(stack, _stack_name(stack, observed))
    return sentence(action)


def _stack_name(stack: str, observed: Observed) -> str:
    live = observed.traffic.live
    return stack if stack in observed.stacks or (live is not None and live.stack == stack) else "(new)"


def _pairs(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in tags.items())

"""Which port call performs which action. Nothing is decided here: one line per action, in the order of `Action`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain import plan
from retrieval_operator.domain.plan import Action
from retrieval_operator.ports import ModelStore, Registry, Stacks, Surroundings, Traffic, Workloads


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The outside of the control plane. A composition root fills it with one set of adapters."""

    models: ModelStore
    workloads: Workloads
    stacks: Stacks
    traffic: Traffic
    registry: Registry
    surroundings: Surroundings


# (ports, object, action, now). The action is Any because a table of types cannot tell mypy which row it is; the tests
# perform one action of every type.
Call = Callable[[Ports, RetrievalModel, Any, int], Awaitable[None]]

CALLS: Mapping[type[Action], Call] = {
    plan.EnsureRun: lambda ports, model, action, _: ports.registry.ensure_run(model, action),
    plan.TagRun: lambda ports, model, action, _: ports.registry.tag_run(model, action.run_id, action.tags),
    plan.SetRunStatus: lambda ports, model, action, _: ports.registry.set_run_status(
        model, action.run_id, action.status
    ),
    plan.RegisterVersion: lambda ports, model, action, _: ports.registry.register_version(model, action),
    plan.DescribeVersion: lambda ports, model, action, _: ports.registry.describe_version(
        model, action.version, action.tags, action.description
    ),
    plan.SetAlias: lambda ports, model, action, _: ports.registry.set_alias(model, action.alias, action.version),
    plan.StartWorkload: lambda ports, model, action, _: ports.workloads.start(model, action.workload),
    plan.StopWorkload: lambda ports, model, action, _: ports.workloads.stop(model, action.name),
    plan.DeleteWorkload: lambda ports, model, action, _: ports.workloads.delete(model, action.name),
    plan.CreateStack: lambda ports, model, action, _: ports.stacks.create(
        model, action.record, action.replicas, action.max_replicas
    ),
    plan.ScaleStack: lambda ports, model, action, _: ports.stacks.scale(
        model, action.stack, action.replicas, action.max_replicas
    ),
    plan.DeleteStack: lambda ports, model, action, _: ports.stacks.delete(model, action.stack),
    plan.SwitchTraffic: lambda ports, model, action, now: ports.traffic.switch(
        model, action.record, action.observed_version, now
    ),
    plan.StopTraffic: lambda ports, model, _action, _: ports.traffic.close(model),
    plan.EmitEvent: lambda ports, model, action, now: ports.models.emit(model, action, now),
    plan.SetFinalizer: lambda ports, model, action, _: ports.models.set_finalizer(model, action.present),
}

# A view of the registry from before one of these would make `decide` ask for it again.
REGISTRY_ACTIONS = (
    *(plan.EnsureRun, plan.TagRun, plan.SetRunStatus),
    *(plan.RegisterVersion, plan.DescribeVersion, plan.SetAlias),
)


async def perform(ports: Ports, model: RetrievalModel, action: Action, now: int) -> None:
    """Perform one action. Raises what the port raises: Retryable, Stale, Rejected, Gone."""
    await CALLS[type(action)](ports, model, action, now)

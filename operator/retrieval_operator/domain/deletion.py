"""An object being deleted: serving ends with it; the registry's record and the storage stay (deletionPolicy Retain)."""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.domain.context import Context
from retrieval_operator.domain.plan import (
    Action,
    DeleteStack,
    DeleteWorkload,
    EmitEvent,
    Plan,
    SetFinalizer,
    StopTraffic,
)


def decide_deletion(context: Context) -> Plan:
    """Close the address, then remove stacks and workloads, then let the object go. Each pass does what is left."""
    observed = context.observed
    actions: list[Action] = []
    if observed.traffic.live is not None or observed.traffic.address:
        actions.append(StopTraffic())
    actions += [DeleteStack(stack=stack) for stack in sorted(observed.stacks)]
    actions += [DeleteWorkload(name=workload.name) for workload in observed.workloads]
    status = context.status.model_copy(update={"phase": "Deleting", "candidate": None})
    if actions:
        if context.status.phase != "Deleting":
            actions.append(
                EmitEvent(type="Normal", reason=Reason.DELETING, message="serving ends; storage and MLflow stay")
            )
        return Plan(actions=tuple(actions), status=status, requeue_after_s=1.0, why="being deleted")
    return Plan(actions=(SetFinalizer(present=False),), status=status, why="deleted")

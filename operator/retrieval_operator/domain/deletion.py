"""An object being deleted: serving ends with it. Its files stay (deletionPolicy Retain) or go first (Delete).

Only Delete holds the object, by a finalizer that is there as long as the policy says so. The registry's record stays in
both cases; with the files go the proofs that they are complete, so that an object of the same name starts anew.

A namespace that is being deleted takes no new Job, so nothing could remove files there: its objects are let go at once,
for else the namespace could never go. What lies on a claim of that namespace goes with the claim.
"""

from __future__ import annotations

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.domain import commands
from retrieval_operator.domain.attempts import how_it_ended
from retrieval_operator.domain.collection import next_attempt, withdrawals
from retrieval_operator.domain.conditions import of_deletion
from retrieval_operator.domain.context import Context, cut
from retrieval_operator.domain.plan import (
    Action,
    DeleteStack,
    DeleteWorkload,
    EmitEvent,
    Plan,
    SetFinalizer,
    StartWorkload,
    StopTraffic,
)
from retrieval_operator.domain.workloads import WorkloadObserved

# While the registry is away, or a removal runs. The latter's end also wakes the queue.
_REQUEUE_S = 10.0
_WAY_OUT = "set deletionPolicy: Retain to keep the files and let the object go"


def finalizer(context: Context) -> tuple[Action, ...]:
    """The finalizer of an object that lives, as its deletionPolicy wants it."""
    wanted = context.spec.deletion_policy == "Delete"
    return (SetFinalizer(present=wanted),) if wanted is not (FINALIZER in context.model.metadata.finalizers) else ()


def decide_deletion(context: Context) -> Plan:
    """Close the address, remove stacks and workloads, then (Delete) the files, then let the object go.

    Each pass does what is left. Until the files are removed nothing but a change to Retain lets the object go.
    """
    removes = context.spec.deletion_policy == "Delete"
    removals = [work for work in context.observed.workloads if _is_removal(context, work)] if removes else []
    actions = _ended_serving(context, removals)
    if actions:
        if context.status.phase != "Deleting":
            files = "then its files are removed" if removes else "its files stay"
            message = f"serving ends, {files}; the record in MLflow stays"
            actions.append(EmitEvent(type="Normal", reason=Reason.DELETING, message=message))
        return _deleting(context, tuple(actions), "being deleted", requeue_after_s=1.0)
    if not removes or any(work.state == "Succeeded" for work in removals):
        return _released(context)
    if any(problem.dependency == "namespace" for problem in context.observed.problems):
        return _with_the_namespace(context)
    return _removed(context, removals)


def _is_removal(context: Context, work: WorkloadObserved) -> bool:
    return work.key == commands.removal_key(context.model)


def _ended_serving(context: Context, removals: list[WorkloadObserved]) -> list[Action]:
    """Traffic first, stacks when it is seen to be gone: a cluster shows that later, and a live stack is not removed."""
    observed = context.observed
    actions: list[Action] = []
    if observed.traffic.live is not None or observed.traffic.address:
        actions.append(StopTraffic())
    else:
        actions += [DeleteStack(stack=stack) for stack in sorted(observed.stacks)]
    actions += [DeleteWorkload(name=work.name) for work in observed.workloads if work not in removals]
    return actions


def _removed(context: Context, removals: list[WorkloadObserved]) -> Plan:
    """The proofs are withdrawn, then the files removed: a proof must not outlive what it is about."""
    registry = context.registry
    if registry is None:
        why = f"MLflow is not reachable, and says there which files are complete; waiting for it; or {_WAY_OUT}"
        return _deleting(context, (), why, stalled=Reason.REGISTRY_UNAVAILABLE)
    proofs = withdrawals(list(registry.runs.values()))
    if proofs:
        return _deleting(context, proofs, "withdrawing the reports of what is about to be removed")
    if any(work.state == "Running" for work in removals):
        return _deleting(context, (), f"removing all files under {commands.storage_root(context.model)}")
    attempt = next_attempt(context, removals)
    if not attempt.number:
        latest = max(removals, key=lambda work: work.attempt)
        why = f"{how_it_ended(latest)}; another attempt follows; or {_WAY_OUT}"
        wait = max(1, attempt.next_at - context.now)
        return _deleting(context, (), why, stalled=Reason.REMOVAL_FAILED, requeue_after_s=wait)
    work = commands.remove_all(context.model, attempt=attempt.number)
    return _deleting(context, (*attempt.actions, StartWorkload(workload=work)), f"{work.name} is starting")


def _with_the_namespace(context: Context) -> Plan:
    """Files cannot be removed any more, and MLflow is not waited for: where it answers, the proofs are withdrawn."""
    proofs = withdrawals(list(context.registry.runs.values())) if context.registry is not None else ()
    if proofs:
        return _deleting(context, proofs, "withdrawing the reports of what goes with the namespace")
    message = (
        f"the namespace is being deleted, so no Job can remove files under {commands.storage_root(context.model)}; "
        "what does not go with the namespace's claims is yours to remove"
    )
    told = EmitEvent(type="Warning", reason=Reason.REMOVAL_FAILED, message=cut(message))
    return _deleting(context, (told, SetFinalizer(present=False)), "deleted with its namespace", requeue_after_s=None)


def _released(context: Context) -> Plan:
    return _deleting(context, (SetFinalizer(present=False),), "deleted", requeue_after_s=None)


def _deleting(
    context: Context,
    actions: tuple[Action, ...],
    why: str,
    *,
    stalled: Reason | None = None,
    requeue_after_s: float | None = _REQUEUE_S,
) -> Plan:
    status = context.status.model_copy(
        update={
            "observed_generation": context.model.metadata.generation,  # in a cluster a deletion is a new one
            "phase": "Deleting",
            "candidate": None,
            "address": context.observed.traffic.address,
            "conditions": of_deletion(context, stalled, why),
        }
    )
    return Plan(actions=actions, status=status, requeue_after_s=requeue_after_s, why=why)

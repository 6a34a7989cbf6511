"""A plan is data: the actions of one pass, in order, and the status to write.

Every action is idempotent: performed twice, or on a world where it was done already, it changes nothing. The status
states only what was observed; the effect of an action shows in the next pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord
from retrieval_operator.domain.observed import RunStatus
from retrieval_operator.domain.workloads import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class EnsureRun:
    """Find the MLflow run of (owner, step, key) by its tags, or create it; nested under the parent's when given."""

    step: str
    key: str
    name: str
    parent_key: str = ""  # key of the revision's own run, step "train"
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TagRun:
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class SetRunStatus:
    """Say of a run without a report whether its work goes on, or how it ended."""

    run_id: str
    status: RunStatus


@dataclass(frozen=True, kw_only=True)
class RegisterVersion:
    """Find the model version of the bundle by its tag, or create it from the run's artifact `bundle`."""

    bundle_id: str
    run_id: str
    tags: Mapping[str, str]
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class DescribeVersion:
    """Set tags (an empty value removes the tag) and, unless None, the description of a model version."""

    version: str
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None


@dataclass(frozen=True, kw_only=True)
class SetAlias:
    """Point an alias at a version; version "" removes the alias."""

    alias: str
    version: str


@dataclass(frozen=True, kw_only=True)
class StartWorkload:
    workload: WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class StopWorkload:
    name: str


@dataclass(frozen=True, kw_only=True)
class DeleteWorkload:
    """Forget a workload's record and log. Only of steps that nothing looks at any more."""

    name: str


@dataclass(frozen=True, kw_only=True)
class CreateStack:
    """Exactly `replicas` servers; with an autoscaler (`max_replicas` > 0) at least so many, and at most that."""

    record: StackRecord
    replicas: int
    max_replicas: int = 0


@dataclass(frozen=True, kw_only=True)
class ScaleStack:
    """As of CreateStack."""

    stack: str
    replicas: int
    max_replicas: int = 0


@dataclass(frozen=True, kw_only=True)
class DeleteStack:
    """Drain and remove a stack. Refused by the adapter while the traffic points at it."""

    stack: str


@dataclass(frozen=True, kw_only=True)
class SwitchTraffic:
    """Send new connections to this stack; refused when the observed version is no longer the newest."""

    record: StackRecord
    observed_version: str


@dataclass(frozen=True, kw_only=True)
class StopTraffic:
    """The object is being deleted: close its address."""


@dataclass(frozen=True, kw_only=True)
class EmitEvent:
    """`of_action`: it tells of the action before it in the plan, and so only when that was performed."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str
    of_action: bool = False


@dataclass(frozen=True, kw_only=True)
class SetFinalizer:
    present: bool


Action = (
    EnsureRun
    | TagRun
    | SetRunStatus
    | RegisterVersion
    | DescribeVersion
    | SetAlias
    | StartWorkload
    | StopWorkload
    | DeleteWorkload
    | CreateStack
    | ScaleStack
    | DeleteStack
    | SwitchTraffic
    | StopTraffic
    | EmitEvent
    | SetFinalizer
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`requeue_after_s` None: nothing to wait for but changes. `why` says in a sentence what happens next."""

    actions: tuple[Action, ...]
    status: RetrievalModelStatus
    requeue_after_s: float | None = None
    why: str = ""

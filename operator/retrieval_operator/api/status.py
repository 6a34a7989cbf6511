"""What the operator writes back: conditions, champion, candidate, history.

Nothing in here is a source of truth. The champion's truth is the traffic selector, completion is proved by reports in
the registry, refusals are tags there; `decide` rebuilds a status that was wiped from those.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from retrieval_operator.api.conditions import Condition, Reason


class StatusPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    def document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StackRecord(StatusPart):
    """All that is needed to run a stack again, and to know where it came from. Stored with the stack and the traffic.

    `revision` is the training (or import) that made the bundle; `slot` the schedule slot or counter in it, "" for none.
    """

    stack: str
    bundle_id: str
    bundle_uri: str
    generation_id: str
    generation_uri: str
    generation_key: str
    serving_hash: str
    revision: str
    slot: str = ""
    refresh_slot: str = ""
    model_version: str = ""
    data_uri: str = ""
    as_of: int | None = None
    serving: dict[str, Any] = Field(default_factory=dict, description="the serving spec this stack was started with")


class CandidateKind(StrEnum):
    REVISION = "Revision"  # train (or import), evaluate, index, serve
    REFRESH = "Refresh"  # the champion's bundle with a new index generation
    SERVING = "Serving"  # the champion's bundle and generation with another server
    ROLLBACK = "Rollback"  # a former stack that is no longer running


class Step(StrEnum):
    """Where a candidate is. Derived in each pass from what is observed; stored for people."""

    PENDING = "Pending"
    TRAINING = "Training"
    REGISTERING = "Registering"
    INDEXING_EVALUATION = "IndexingForEvaluation"
    EVALUATING = "Evaluating"
    INDEXING_SERVING = "IndexingForServing"
    DEPLOYING = "Deploying"
    VERIFYING = "Verifying"
    AWAITING_APPROVAL = "AwaitingApproval"
    PROMOTING = "Promoting"
    BAKING = "Baking"


class GateVerdict(StatusPart):
    """One gate with its numbers. Numbers are for people here; the verdict was computed from evaluation.json."""

    gate: str
    verdict: Literal["Passed", "Failed", "Inconclusive"]
    dry_run: bool = False
    message: str = Field(max_length=1024)
    n: int = 0
    value: float | None = None
    champion_value: float | None = None
    delta: float | None = None
    lower: float | None = None
    upper: float | None = None


class Candidate(StatusPart):
    """The one piece of work in flight."""

    id: str = Field(description="revision hash, or for the other kinds the hash of what is new")
    kind: CandidateKind
    revision: str
    slot: str = ""
    refresh_slot: str = ""
    scheduled: bool = False
    generation: int = Field(description="the object's generation that asked for it")
    step: Step = Step.PENDING
    started_at: int
    step_started_at: int
    data_uri: str = ""
    bundle_id: str = ""
    bundle_uri: str = ""
    model_version: str = ""
    stack: str = ""
    evaluation_run: str = Field(default="", description="the MLflow run that holds evaluation.json and its plot")
    approval_token: str = Field(default="", description="what an approval must name: this stack after this verdict")
    attempts: dict[str, int] = Field(default_factory=dict, description="<step>-<key> -> attempt last started")
    ignored_attempts: dict[str, int] = Field(
        default_factory=dict, description="<step>-<key> -> attempts up to here do not count: a person asked for a retry"
    )
    gates: list[GateVerdict] = Field(default_factory=list, max_length=16)
    message: str = Field(default="", max_length=1024)
    overdue_since: int | None = Field(default=None, description="when the progress deadline was first seen to be over")
    blocked_since: int | None = Field(default=None, description="the progress deadline stands still from here on")


class Champion(StackRecord):
    """The stack that serves, as the traffic says."""

    promoted_at: int
    baking_until: int
    token: str = Field(default="", description="what a request to roll back must name: this stack since this switch")
    gates: list[GateVerdict] = Field(default_factory=list, max_length=16)
    evaluation_run: str = ""


Outcome = Literal["Promoted", "Rejected", "Inconclusive", "Failed", "RolledBack", "Superseded"]


class HistoryEntry(StatusPart):
    """How one candidate ended. Newest first; at most 10."""

    id: str
    kind: CandidateKind
    revision: str
    outcome: Outcome
    reason: Reason
    message: str = Field(default="", max_length=1024)
    at: int
    gates: list[GateVerdict] = Field(default_factory=list, max_length=16)
    evaluation_run: str = ""
    step: Step | None = Field(default=None, description="where a candidate was that did not get to its end")
    record: StackRecord | None = None
    retried: bool = Field(
        default=False, description="a person asked for a retry: this entry no longer refuses anything"
    )


class RetrievalModelStatus(StatusPart):
    observed_generation: int = 0
    phase: str = ""
    conditions: list[Condition] = Field(default_factory=list)
    champion: Champion | None = None
    candidate: Candidate | None = None
    history: list[HistoryEntry] = Field(default_factory=list, max_length=10)
    address: str = Field(default="", description="where clients find the champion")
    handled_retry: str = ""
    training_slot: str = Field(default="", description="the newest schedule slot or counter that was taken up")
    refresh_slot: str = ""
    immutable: dict[str, str] = Field(default_factory=dict, description="immutable fields as first accepted")

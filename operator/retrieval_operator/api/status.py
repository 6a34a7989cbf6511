"""What the operator writes back: conditions, champion, candidate, history.

Nothing in here is a source of truth. The champion's truth is the traffic selector, completion is proved by reports in
the registry, refusals are tags there; `decide` rebuilds a status that was wiped from those.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from retrieval_operator.api.conditions import Condition, Reason
from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES, MAX_GENERATION
from retrieval_operator.api.types import Time

# Bounds of what the operator writes itself: roomy, since a status over them could never be stored.
Word = Annotated[str, Field(max_length=64)]  # ids, hashes, versions
Line = Annotated[str, Field(max_length=320)]  # names and tokens; a slot is a time, "#" and a request of up to 256
Address = Annotated[str, Field(max_length=2048)]  # storage.uri (up to 1024) and what is appended to it
Message = Annotated[str, Field(max_length=1024)]
AttemptNumber = Annotated[int, Field(ge=0, le=1_000_000)]


class StatusPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    def document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StackRecord(StatusPart):
    """All that is needed to run a stack again, and to know where it came from. Stored with the stack and the traffic.

    `revision` is the training (or import) that made the bundle; `slot` the schedule slot or counter in it, "" for none.
    """

    stack: Word = Field(description="stack is the hash that names it: bundle, index generation, serving spec.")
    bundle_id: Word = Field(description="bundleId names the encoder by its content.")
    bundle_uri: Address = Field(description="bundleUri is where the bundle lies.")
    generation_id: Word = Field(description="generationId names the index generation.")
    generation_uri: Address = Field(description="generationUri is where the index generation lies.")
    generation_key: Word = Field(description="generationKey is the hash of what the index generation was asked for.")
    serving_hash: Word = Field(description="servingHash is the hash of the serving spec.")
    revision: Word = Field(description="revision is the training (or import) that made the bundle.")
    slot: Line = Field(default="", description="slot: the schedule slot or counter that is part of the revision.")
    refresh_slot: Line = Field(default="", description="refreshSlot: the schedule slot that asked for the index.")
    model_version: Word = Field(default="", description="modelVersion is the version in MLflow.")
    data_uri: Address = Field(default="", description="dataUri is the dataset the index was built from.")
    as_of: Time | None = Field(default=None, description="asOf: nothing later than this is in the index.")
    items: Annotated[int, Field(ge=0, le=MAX_GENERATION)] | None = Field(
        default=None, description="items: how many are in the index; the next one is compared with it."
    )
    serving: dict[str, Any] = Field(
        default_factory=dict, max_length=32, description="serving is the serving spec this stack was started with."
    )


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

    gate: Line = Field(description="gate is the metric, k, pool and segment, such as recall@10 (matched, all).")
    verdict: Literal["Passed", "Failed", "Inconclusive"] = Field(
        description="verdict is Passed, Failed or Inconclusive."
    )
    dry_run: bool = Field(default=False, description="dryRun: the verdict decides nothing.")
    message: Message = Field(description="message says why, with the numbers.")
    n: Annotated[int, Field(ge=0, le=MAX_GENERATION)] = Field(default=0, description="n is how many members count.")
    value: float | None = Field(default=None, description="value of the candidate.")
    shown: Word | None = Field(default=None, description="shown is value in four significant digits, for columns.")
    champion_value: float | None = Field(default=None, description="championValue on the same members.")
    delta: float | None = Field(default=None, description="delta is value less championValue.")
    lower: float | None = Field(default=None, description="lower one-sided confidence bound of delta.")
    upper: float | None = Field(default=None, description="upper one-sided confidence bound of delta.")


class Candidate(StatusPart):
    """The one piece of work in flight."""

    id: Word = Field(description="id is the revision hash, or for the other kinds the hash of what is new.")
    kind: CandidateKind = Field(description="kind is what is new: Revision, Refresh, Serving or Rollback.")
    revision: Word = Field(description="revision is the training (or import) that makes or made the bundle.")
    slot: Line = Field(default="", description="slot: the schedule slot or counter that asked for it.")
    refresh_slot: Line = Field(default="", description="refreshSlot: the schedule slot that asked for the index.")
    scheduled: bool = Field(default=False, description="scheduled: asked for by a schedule, not by an edit.")
    retry: Line = Field(default="", description="retry that lifted its refusal: what was measured before is not used.")
    generation: Annotated[int, Field(ge=0, le=MAX_GENERATION)] = Field(
        description="generation of the object that asked for it."
    )
    step: Step = Field(default=Step.PENDING, description="step is where it is on its way.")
    started_at: Time = Field(description="startedAt is when the work began.")
    step_started_at: Time = Field(description="stepStartedAt is when this step began.")
    data_uri: Address = Field(default="", description="dataUri is the dataset in use.")
    bundle_id: Word = Field(default="", description="bundleId names the encoder by its content.")
    bundle_uri: Address = Field(default="", description="bundleUri is where the bundle lies.")
    model_version: Word = Field(default="", description="modelVersion is the version in MLflow.")
    stack: Word = Field(default="", description="stack is the hash that names what would serve.")
    evaluation_run: Word = Field(
        default="", description="evaluationRun is the MLflow run that holds evaluation.json and its plot."
    )
    approval_token: Line = Field(
        default="", description="approvalToken is what an approval must name: this stack after this verdict."
    )
    attempts: dict[Line, AttemptNumber] = Field(
        default_factory=dict, max_length=256, description="attempts last started, by <step>-<key>."
    )
    ignored_attempts: dict[Line, AttemptNumber] = Field(
        default_factory=dict,
        max_length=256,
        description="ignoredAttempts: up to here they do not count, since a person asked for a retry.",
    )
    gates: list[GateVerdict] = Field(default_factory=list, max_length=16, description="gates with their verdicts.")
    message: Message = Field(default="", description="message says what is waited for.")
    overdue_since: Time | None = Field(
        default=None, description="overdueSince is when the progress deadline was first seen to be over."
    )
    blocked_since: Time | None = Field(
        default=None, description="blockedSince: the progress deadline stands still from here on."
    )


class Champion(StackRecord):
    """The stack that serves, as the traffic says."""

    promoted_at: Time = Field(description="promotedAt is when the traffic was switched to it.")
    baking_until: Time = Field(description="bakingUntil: up to then a failed check rolls back.")
    token: Line = Field(
        default="", description="token is what a request to roll back must name: this stack since this switch."
    )
    gates: list[GateVerdict] = Field(
        default_factory=list, max_length=16, description="gates with the verdicts it was promoted on."
    )
    evaluation_run: Word = Field(default="", description="evaluationRun is the MLflow run of those verdicts.")


Outcome = Literal["Promoted", "Rejected", "Inconclusive", "Failed", "RolledBack", "Superseded"]


class HistoryEntry(StatusPart):
    """How one candidate ended. Newest first; at most 14."""

    id: Word = Field(description="id of the candidate.")
    kind: CandidateKind = Field(description="kind is what was new: Revision, Refresh, Serving or Rollback.")
    revision: Word = Field(description="revision is the training (or import) that made the bundle.")
    outcome: Outcome = Field(
        description="outcome is Promoted, Rejected, Inconclusive, Failed, RolledBack or Superseded."
    )
    reason: Reason = Field(description="reason is one word for programs: why it ended so.")
    message: Message = Field(default="", description="message says the same in a sentence, for people.")
    at: Time = Field(description="at is when it ended.")
    gates: list[GateVerdict] = Field(default_factory=list, max_length=16, description="gates with their verdicts.")
    evaluation_run: Word = Field(default="", description="evaluationRun is the MLflow run of those verdicts.")
    step: Step | None = Field(default=None, description="step is where a candidate was that did not get to its end.")
    record: StackRecord | None = Field(
        default=None, description="record is the stack it became: what a rollback to it needs."
    )
    retried: bool = Field(
        default=False, description="retried: a person asked for a retry, this entry no longer refuses anything."
    )


class RetrievalModelStatus(StatusPart):
    """What the operator found and did. Rebuilt when it is wiped: nothing in here is a source of truth."""

    observed_generation: Annotated[int, Field(ge=0, le=MAX_GENERATION)] = Field(
        default=0, description="observedGeneration is the metadata.generation this status speaks of."
    )
    phase: Word = Field(default="", description="phase is a summary for columns; programs read the conditions.")
    conditions: list[Condition] = Field(
        default_factory=list, max_length=32, description="conditions, one per type; an absent one is unknown."
    )
    champion: Champion | None = Field(default=None, description="champion is the stack that serves.")
    candidate: Candidate | None = Field(default=None, description="candidate is the one piece of work in flight.")
    history: list[HistoryEntry] = Field(
        default_factory=list, max_length=HISTORY_MAX_ENTRIES, description="history of candidates, newest first."
    )
    address: Address = Field(default="", description="address is where clients find the champion.")
    handled_retry: Line = Field(default="", description="handledRetry is the last retry that was acted on.")
    training_slot: Line = Field(
        default="", description="trainingSlot is the newest schedule slot or counter that was taken up."
    )
    refresh_slot: Line = Field(default="", description="refreshSlot is the same for index refreshes.")
    immutable: dict[Line, Address] = Field(
        default_factory=dict, max_length=16, description="immutable fields as they were first accepted."
    )

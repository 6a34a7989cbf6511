"""Condition types and reasons. Absent means Unknown; a reason is one CamelCase word; a message is a sentence.

`Reconciling` and `Stalled` follow kstatus: they are present only while True, and exclude each other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from retrieval_operator.api.constants import MAX_GENERATION
from retrieval_operator.api.types import Time

ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    READY = "Ready"  # the champion stack serves
    RECONCILING = "Reconciling"  # work caused by this generation of the object is under way
    STALLED = "Stalled"  # this generation cannot proceed without a person
    PROGRESSING = "Progressing"  # scheduled work is under way
    TRAINING_SUCCEEDED = "TrainingSucceeded"
    MODEL_REGISTERED = "ModelRegistered"
    INDEX_READY = "IndexReady"
    ENCODER_READY = "EncoderReady"
    GATES_PASSED = "GatesPassed"  # Unknown: inconclusive
    PROMOTED = "Promoted"  # this generation's stack is champion
    DEPENDENCIES_READY = "DependenciesReady"
    SUSPENDED = "Suspended"


class Reason(StrEnum):
    """Every reason a condition, an event or a history entry may carry."""

    # the champion
    CHAMPION_SERVING = "ChampionServing"
    CHAMPION_NOT_READY = "ChampionNotReady"
    NO_CHAMPION = "NoChampion"
    # steps of a candidate
    TRAINING = "Training"
    REGISTERING = "Registering"
    INDEXING = "Indexing"
    EVALUATING = "Evaluating"
    DEPLOYING = "Deploying"
    VERIFYING = "Verifying"
    AWAITING_APPROVAL = "AwaitingApproval"
    PROMOTING = "Promoting"
    BAKING = "Baking"
    SUCCEEDED = "Succeeded"
    # outcomes
    PROMOTED = "Promoted"
    GATES_FAILED = "GatesFailed"
    GATES_INCONCLUSIVE = "GatesInconclusive"
    INTEGRITY_FAILED = "IntegrityFailed"
    VERIFICATION_FAILED = "VerificationFailed"
    REJECTED_BY_REVIEWER = "RejectedByReviewer"
    ROLLED_BACK = "RolledBack"
    SUPERSEDED = "Superseded"
    TRAINING_FAILED = "TrainingFailed"
    INDEXING_FAILED = "IndexingFailed"
    EVALUATION_FAILED = "EvaluationFailed"
    DEPLOYMENT_FAILED = "DeploymentFailed"
    BAD_INPUT = "BadInput"
    DIVERGED = "Diverged"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    BACKING_OFF = "BackingOff"
    ALREADY_REFUSED = "AlreadyRefused"
    # surroundings
    REGISTRY_UNAVAILABLE = "RegistryUnavailable"
    DEPENDENCIES_MET = "DependenciesMet"
    DEPENDENCY_MISSING = "DependencyMissing"
    SUSPENDED = "Suspended"
    NOT_SUSPENDED = "NotSuspended"
    ALIAS_REPAIRED = "AliasRepaired"
    STACK_REPAIRED = "StackRepaired"
    STACK_COLLECTED = "StackCollected"
    FILES_COLLECTED = "FilesCollected"
    REMOVAL_FAILED = "RemovalFailed"
    REMOVING_FILES = "RemovingFiles"
    IMMUTABLE_FIELD_CHANGED = "ImmutableFieldChanged"
    INVALID_SPEC = "InvalidSpec"  # an older or wider definition let in what this operator cannot read
    UNREADABLE = "Unreadable"  # what runs for the object, such as its Service, says what cannot be read
    DELETING = "Deleting"


class Condition(BaseModel):
    """One thing that is or is not so, as Kubernetes' API conventions have it."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    type: ConditionType = Field(description="type of the condition, one word such as Ready; one entry per type.")
    status: ConditionStatus = Field(description="status is True, False or Unknown.")
    reason: Reason = Field(description="reason is one word for programs: why the status is what it is.")
    message: str = Field(default="", max_length=1024, description="message says the same in a sentence, for people.")
    observed_generation: int = Field(
        ge=0,
        le=MAX_GENERATION,
        description="observedGeneration is the metadata.generation that the condition speaks of.",
    )
    last_transition_time: Time = Field(description="lastTransitionTime moves only when status changes.")

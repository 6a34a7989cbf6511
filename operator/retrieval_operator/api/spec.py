"""The RetrievalModel spec: every field, bound and cross-field rule of the manifest (design section 5).

Field descriptions become `kubectl explain`. A field that is not set keeps its meaning for ever: hashes are taken
over explicitly set fields only (domain/identity.py), so a default may change without retraining anybody's model.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from retrieval_operator.api.pod import Pod, Quantity, Resources
from retrieval_operator.api.types import Cron, DecimalString, Fraction, Image, Label, Manifest, Name, TimeZone, Uri

Dimension = Annotated[int, Field(ge=8, le=8192)]
Count = Annotated[int, Field(ge=1)]
Segment = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.:=-]*$", max_length=128)]
ServedK = Annotated[int, Field(ge=1, le=10_000)]


class Storage(Manifest):
    """Where checkpoints, bundles and index generations live: <uri>/<namespace>/<name>/..."""

    uri: Uri = Field(description="uri is any fsspec URI; a plain path is a local directory. Immutable.")
    secret_ref: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="secretRef names a Secret whose keys become environment variables of every pod."
    )
    persistent_volume_claim: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="persistentVolumeClaim names a claim mounted at the path of uri in every pod."
    )


class Data(Manifest):
    """The dataset (docs/contracts.md section 3) and when a new training is due."""

    uri: Uri = Field(description="uri of the directory that holds dataset.yaml.")
    revision: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        description="revision is your name for the data's state. A new value trains a new revision of the model."
    )
    schedule: Cron | None = Field(default=None, description="schedule is a cron expression; each due time retrains.")
    time_zone: TimeZone = Field(default="UTC", description="timeZone of every schedule of this object, an IANA name.")
    starting_deadline_seconds: Annotated[int, Field(ge=10, le=604_800)] = Field(
        default=3600, description="startingDeadlineSeconds: a due time missed by more than this is skipped."
    )


class MaxTokens(Manifest):
    member: Annotated[int, Field(ge=8, le=32_768)] = 256
    item: Annotated[int, Field(ge=8, le=8192)] = 96


class Model(Manifest):
    """What is trained, or which finished bundle is imported. Exactly one of base and bundleUri."""

    base: Uri | None = Field(
        default=None,
        description="base is the URI of a Hugging Face causal LM directory (safetensors), "
        "or preset:tiny, a toy trained from scratch.",
    )
    bundle_uri: Uri | None = Field(default=None, description="bundleUri imports a finished bundle; nothing is trained.")
    pooling: Literal["mean"] = "mean"
    dimensions: Annotated[list[Dimension], Field(min_length=1, max_length=8)] | None = Field(
        default=None,
        description="dimensions are the Matryoshka widths, largest first; the first is the model's own width.",
    )
    served_dimension: Dimension | None = Field(
        default=None, description="servedDimension is the width the index is searched at; default the largest."
    )
    max_tokens: MaxTokens | None = None
    prompts: dict[str, Any] | None = Field(
        default=None, description="prompts (docs/contracts.md section 4); default: derived from the dataset's columns."
    )

    @model_validator(mode="after")
    def base_or_bundle(self) -> Self:
        if (self.base is None) == (self.bundle_uri is None):
            found = "neither" if self.base is None else "both"
            raise ValueError(f"found {found}, expected exactly one of base (train) and bundleUri (import)")
        return self

    @model_validator(mode="after")
    def widths_descend(self) -> Self:
        if self.dimensions is None:
            return self
        if sorted(set(self.dimensions), reverse=True) != self.dimensions:
            raise ValueError(f"dimensions: found {self.dimensions}, expected distinct widths, largest first")
        if self.served_dimension is not None and self.served_dimension not in self.dimensions:
            raise ValueError(
                f"servedDimension: found {self.served_dimension}, expected one of dimensions {self.dimensions}"
            )
        return self


class Lora(Manifest):
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32


class Hyperparameters(Manifest):
    """Handed to the trainer as they are; what is not set is the trainer's default (retrieval-train --help)."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | None = None
    learning_rate: Annotated[DecimalString, Field(gt=0, le=10)] | None = None
    warmup_fraction: Fraction | None = None
    weight_decay: Annotated[DecimalString, Field(ge=0, le=10)] | None = None
    max_grad_norm: Annotated[DecimalString, Field(gt=0, le=1000)] | None = None
    temperature: Annotated[DecimalString, Field(gt=0, le=10)] | None = None
    hard_negatives: Annotated[int, Field(ge=0, le=64)] | None = None
    hard_negative_scope: Literal["own", "all"] | None = None
    log_q: bool | None = Field(default=None, alias="logQ")
    positive_correction: Annotated[str, Field(max_length=32)] | None = None
    method: Literal["full", "lora"] | None = None
    lora: Lora | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    precision: Literal["float32", "bfloat16"] | None = None

    @model_validator(mode="after")
    def one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("found both steps and epochs, expected at most one")
        return self


class Training(Manifest):
    """How the fine-tune runs."""

    backend: Literal["PyTorchJob", "Job"] = Field(
        default="PyTorchJob", description="backend is ignored on one machine."
    )
    image: Image | None = None
    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    processes_per_node: Annotated[int, Field(ge=1, le=16)] = 1
    resources: Resources = Field(default_factory=Resources)
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    queue_name: Label | None = Field(default=None, description="queueName becomes Kueue's queue label.")
    pod: Pod = Field(default_factory=Pod)
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    active_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = Field(
        default=86_400, description="activeDeadlineSeconds bounds one attempt of the training."
    )

    @model_validator(mode="after")
    def one_machine_backend(self) -> Self:
        if self.backend == "Job" and self.nodes != 1:
            raise ValueError(
                f"nodes: found {self.nodes} with backend Job, expected 1 (use PyTorchJob for several nodes)"
            )
        return self


class Registry(Manifest):
    """The MLflow registered model. Immutable."""

    connection: Name = Field(default="default", description="connection names an MLflow configured for the operator.")
    name: Annotated[str, Field(pattern=r"^[^/:\s][^/:]*$", max_length=200)] | None = Field(
        default=None, description="name of the registered model; default <namespace>.<name> of the object."
    )


class Refresh(Manifest):
    """When the champion's index is rebuilt with newer items, counts and (optionally) members."""

    schedule: Cron | None = Field(default=None, description="schedule is a cron expression; each due time refreshes.")
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="revision: a new value asks for one refresh now."
    )


class Index(Manifest):
    engine: Literal["faiss"] = Field(default="faiss", description="engine is immutable.")
    factory: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_,()]+$")] = Field(
        default="auto", description="factory is Flat, auto, or a FAISS index factory string."
    )
    served_k: ServedK | None = Field(
        default=None, description="servedK: the k at which recall is judged; default 2000."
    )
    latency_target_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    encode_shards: Annotated[int, Field(ge=1, le=1000)] = 1
    members: bool = Field(default=False, description="members: true also stores member vectors for look-up by id.")
    refresh: Refresh = Field(default_factory=Refresh)
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Replicas(Manifest):
    min: Annotated[int, Field(ge=1, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] | None = None

    @model_validator(mode="after")
    def bounds_in_order(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: found {self.max}, expected at least min ({self.min})")
        return self


class Serving(Manifest):
    image: Image | None = None
    replicas: Replicas = Field(default_factory=Replicas)
    connection_age_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60,
        description="connectionAgeSeconds: connections end after about this long, so that clients follow the champion.",
    )
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Evaluation(Manifest):
    k: Annotated[list[ServedK], Field(min_length=1, max_length=8)] = Field(default=[10, 100, 2000])
    segments: Annotated[list[Segment], Field(max_length=16)] = Field(default=["all", "new"])
    min_samples: Annotated[int, Field(ge=30, le=10_000_000)] = 300
    min_discordant: Annotated[int, Field(ge=0, le=1_000_000)] = 30
    confidence: Annotated[DecimalString, Field(ge=Decimal("0.5"), lt=1)] = Decimal("0.95")
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Gate(Manifest):
    """One condition on held-out members. `min` is absolute; `maxRegression` compares with the champion."""

    metric: Literal["recall", "hitRate"] = "recall"
    k: ServedK = 10
    pool: Literal["uniform", "matched", "corpus"] = "matched"
    segment: Segment = "all"
    min: Fraction | None = None
    max_regression: Fraction | None = Field(
        default=None, description="maxRegression: the largest drop against the champion that may be promoted."
    )
    max_drop_from_best: Fraction | None = Field(
        default=None, description="maxDropFromBest: the same against the best of the last promoted stacks (no ratchet)."
    )
    dry_run: bool = Field(default=False, description="dryRun: report this gate, decide nothing by it.")

    @model_validator(mode="after")
    def some_bound(self) -> Self:
        if self.min is None and self.max_regression is None and self.max_drop_from_best is None:
            raise ValueError("found no bound, expected at least one of min, maxRegression, maxDropFromBest")
        if self.metric == "hitRate" and self.pool != "corpus":
            raise ValueError(f'pool: found "{self.pool}" with metric hitRate, expected "corpus"')
        return self

    @property
    def identity(self) -> str:
        """How people and messages name this gate: `recall@10 (matched, all)`."""
        return f"{self.metric}@{self.k} ({self.pool}, {self.segment})"


class Promotion(Manifest):
    mode: Literal["Automatic", "Manual"] = "Automatic"
    gates: Annotated[list[Gate], Field(min_length=1, max_length=16)]
    max_latency_p99_ms: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        default=None, description="maxLatencyP99Ms bounds the dark stack's answers before it may be promoted."
    )
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = Field(
        default=3600, description="progressDeadlineSeconds bounds each step but training, which has its own."
    )
    failure_limit: Annotated[int, Field(ge=1, le=100)] = 3
    inconclusive_limit: Annotated[int, Field(ge=1, le=100)] = 3

    @model_validator(mode="after")
    def distinct_gates(self) -> Self:
        names = [gate.identity for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"gates: found {', '.join(twice)} more than once, expected one gate per metric, k, pool and segment"
            )
        return self

    @model_validator(mode="after")
    def something_decides(self) -> Self:
        if not any(gate.min is not None and not gate.dry_run for gate in self.gates):
            raise ValueError(
                "gates: found no gate with min that is not a dryRun, expected at least one: "
                "the first stack has no champion to be compared with"
            )
        return self


class Rollback(Manifest):
    automatic: bool = True
    window_seconds: Annotated[int, Field(ge=0, le=604_800)] = Field(
        default=3600, description="windowSeconds: how long the former stack is kept running after a promotion."
    )
    checks: Annotated[list[Literal["podsReady", "probe"]], Field(max_length=2)] = Field(default=["podsReady", "probe"])


class RetrievalModelSpec(Manifest):
    suspend: bool = Field(default=False, description="suspend stops new work; the champion keeps serving.")
    storage: Storage
    data: Data
    model: Model
    training: Training = Field(default_factory=Training)
    registry: Registry = Field(default_factory=Registry)
    index: Index = Field(default_factory=Index)
    serving: Serving = Field(default_factory=Serving)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    promotion: Promotion
    rollback: Rollback = Field(default_factory=Rollback)
    deletion_policy: Literal["Retain"] = Field(
        default="Retain", description="deletionPolicy: storage and the MLflow record stay when the object is deleted."
    )

    @model_validator(mode="after")
    def import_has_no_retraining(self) -> Self:
        if self.model.bundle_uri is not None and self.data.schedule is not None:
            raise ValueError(
                "data.schedule: found with model.bundleUri, expected none: an imported bundle is not retrained"
            )
        return self


__all__ = ["Gate", "Quantity", "RetrievalModelSpec"]

"""The RetrievalModel spec: every field, bound and cross-field rule of the manifest.

Field descriptions become `kubectl explain`. A field that is not set keeps its meaning for ever: hashes are taken
over explicitly set fields only (domain/identity.py), so a default may change without retraining anybody's model.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retrieval_operator.api.constants import REVISION_HISTORY_MAX
from retrieval_operator.api.pod import ObjectName, Pod, Quantity, Resources
from retrieval_operator.api.prompts import Prompts
from retrieval_operator.api.types import Cron, DecimalString, Fraction, Image, Label, Manifest, Name, TimeZone, Uri

Dimension = Annotated[int, Field(ge=8, le=8192)]
# A category's value is whatever the data hold, but one line: no control characters.
Segment = Annotated[
    str,
    Field(
        pattern=r"^(all|new|category:[^=\x00-\x1f\x7f-\x9f]+=[^\x00-\x1f\x7f-\x9f]+)$",
        max_length=128,
        description="segment of the held-out members: all, new, or category:FIELD=VALUE of a member's category.",
    ),
]
ServedK = Annotated[int, Field(ge=1, le=10_000)]


class Storage(Manifest):
    """Where checkpoints, bundles and index generations live: <uri>/<namespace>/<name>/..."""

    uri: Uri = Field(description="uri is any fsspec URI; a plain path is a local directory. Immutable.")
    secret_ref: ObjectName | None = Field(
        default=None, description="secretRef names a Secret whose keys become environment variables of every pod."
    )
    persistent_volume_claim: ObjectName | None = Field(
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
    """The longest prompt of each side, in tokens."""

    member: Annotated[int, Field(ge=8, le=32_768)] = Field(
        default=256, description="member: tokens of a member's prompt, history included."
    )
    item: Annotated[int, Field(ge=8, le=8192)] = Field(default=96, description="item: tokens of an item's prompt.")


class Model(Manifest):
    """What is trained, or which finished bundle is imported. Exactly one of base and bundleUri."""

    base: Uri | None = Field(
        default=None,
        description="base is the URI of a Hugging Face causal LM directory (safetensors), "
        "or preset:tiny, a toy trained from scratch.",
    )
    bundle_uri: Uri | None = Field(default=None, description="bundleUri imports a finished bundle; nothing is trained.")
    pooling: Literal["mean"] = Field(default="mean", description="pooling of the tokens' states into one vector.")
    dimensions: Annotated[list[Dimension], Field(min_length=1, max_length=8)] | None = Field(
        default=None,
        description="dimensions are the Matryoshka widths, largest first; the first is the model's own width.",
    )
    served_dimension: Dimension | None = Field(
        default=None, description="servedDimension is the width the index is searched at; default the largest."
    )
    max_tokens: MaxTokens | None = None
    prompts: Prompts | None = Field(
        default=None,
        description="prompts (docs/contracts.md section 4); default: derived from the dataset's columns.",
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
    """Low-rank adapters instead of training every weight."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="rank of the adapters.")
    alpha: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=32, description="alpha: the adapters' output is scaled by alpha / rank."
    )


class Hyperparameters(Manifest):
    """Handed to the trainer as they are; what is not set has the default of docs/contracts.md, section 2."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="steps of the optimizer; or say epochs."
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="epochs: passes over the training part; or say steps."
    )
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | None = Field(
        default=None, description="batchSize: members per process and step."
    )
    learning_rate: Annotated[DecimalString, Field(gt=0, le=10)] | None = Field(
        default=None, description='learningRate at its highest, such as "1e-4".'
    )
    warmup_fraction: Fraction | None = Field(
        default=None, description="warmupFraction of the steps in which the rate rises."
    )
    weight_decay: Annotated[DecimalString, Field(ge=0, le=10)] | None = Field(
        default=None, description="weightDecay of AdamW."
    )
    max_grad_norm: Annotated[DecimalString, Field(gt=0, le=1000)] | None = Field(
        default=None, description="maxGradNorm: longer gradients are cut to it."
    )
    temperature: Annotated[DecimalString, Field(gt=0, le=10)] | None = Field(
        default=None, description="temperature that cosines are divided by."
    )
    hard_negatives: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="hardNegatives per member: impressed, not engaged."
    )
    hard_negative_scope: Literal["own", "all"] | None = Field(
        default=None, description="hardNegativeScope: whose negatives a member sees, its own or all."
    )
    log_q: bool | None = Field(
        default=None,
        alias="logQ",
        description="logQ corrects for items being sampled as often as they are popular.",
    )
    positive_correction: Literal["none", "excluded"] | None = Field(
        default=None,
        description="positiveCorrection: with logQ, whether the positive counts among what negatives are drawn from.",
    )
    method: Literal["full", "lora"] | None = Field(
        default=None, description="method: train all weights (full) or adapters (lora)."
    )
    lora: Lora | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="seed of everything random."
    )
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="checkpointEverySteps: how much an interruption may cost."
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="precision of the computation; weights are kept in float32."
    )

    @model_validator(mode="after")
    def one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("found both steps and epochs, expected at most one")
        return self


class Training(Manifest):
    """How the fine-tune runs."""

    backend: Literal["PyTorchJob", "Job"] = Field(
        default="PyTorchJob",
        description="backend: PyTorchJob (Kubeflow training-operator) or Job (one pod). Ignored on one machine.",
    )
    image: Image | None = Field(
        default=None, description="image of the trainer; default: the operator's version of it."
    )
    nodes: Annotated[int, Field(ge=1, le=512)] = Field(default=1, description="nodes: how many pods train together.")
    processes_per_node: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="processesPerNode: training processes in each pod, one per accelerator."
    )
    resources: Resources = Field(default_factory=Resources)
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    queue_name: Label | None = Field(default=None, description="queueName becomes Kueue's queue label.")
    pod: Pod = Field(default_factory=Pod)
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
    """How items are searched."""

    engine: Literal["faiss"] = Field(default="faiss", description="engine is immutable.")
    factory: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_,()]+$")] = Field(
        default="auto", description="factory is Flat, auto, or a FAISS index factory string."
    )
    served_k: ServedK | None = Field(
        default=None, description="servedK: the k at which recall is judged; default 2000."
    )
    latency_target_ms: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="latencyTargetMs: with factory auto, the serving index is Flat while the median time of one query, "
        "measured on one thread where it is built, is at most this; default: the corpus's size decides.",
    )
    encode_shards: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="encodeShards: how many pods encode the items."
    )
    members: bool = Field(default=False, description="members: true also stores member vectors for look-up by id.")
    refresh: Refresh = Field(default_factory=Refresh)
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Replicas(Manifest):
    """How many servers the champion has: without max exactly min, else what an autoscaler chooses between them."""

    min: Annotated[int, Field(ge=1, le=1000)] = Field(default=1, description="min: at least this many servers.")
    max: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="max: at most this many, as an autoscaler sees fit; refused above min on one machine.",
    )

    @model_validator(mode="after")
    def bounds_in_order(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: found {self.max}, expected at least min ({self.min})")
        return self

    @property
    def most(self) -> int:
        """The most servers that an autoscaler may choose; 0: there is none, always exactly `min`."""
        return self.max if self.max is not None and self.max > self.min else 0


class Serving(Manifest):
    """The servers of a stack."""

    image: Image | None = Field(default=None, description="image of the server; default: the operator's version of it.")
    replicas: Replicas = Field(default_factory=Replicas)
    connection_age_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60,
        description="connectionAgeSeconds: connections end after about this long, so that clients follow the champion.",
    )
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Evaluation(Manifest):
    """What is measured on held-out members before a promotion."""

    k: Annotated[list[ServedK], Field(min_length=1, max_length=8)] = Field(
        default=[10, 100, 2000], description="k: recall and hit rate are reported at each."
    )
    segments: Annotated[list[Segment], Field(max_length=16)] = Field(
        default=["all", "new"], description="segments of members that are reported apart."
    )
    min_samples: Annotated[int, Field(ge=30, le=10_000_000)] = Field(
        default=300, description="minSamples: with fewer members a gate is inconclusive."
    )
    min_discordant: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=30,
        description="minDiscordant: with fewer members on whom the two differ, maxRegression is inconclusive.",
    )
    confidence: Annotated[DecimalString, Field(ge=0.5, lt=1)] = Field(
        default=Decimal("0.95"), description="confidence of the one-sided bounds."
    )
    resources: Resources = Field(default_factory=Resources)
    pod: Pod = Field(default_factory=Pod)


class Gate(Manifest):
    """One condition on held-out members. `min` is absolute; `maxRegression` compares with the champion."""

    metric: Literal["recall", "hitRate"] = Field(
        default="recall", description="metric: recall, or hitRate (corpus only)."
    )
    k: ServedK = Field(default=10, description="k: the first k answers count.")
    pool: Literal["uniform", "matched", "corpus"] = Field(
        default="matched",
        description="pool that is ranked: uniform or matched (142 fixed negatives), or the whole corpus.",
    )
    segment: Segment = Field(
        default="all", description="segment of the held-out members: all, new, or category:FIELD=VALUE."
    )
    min: Fraction | None = Field(default=None, description="min: the value must be at least this.")
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
    """When a candidate becomes champion."""

    mode: Literal["Automatic", "Manual"] = Field(
        default="Automatic", description="mode: Manual waits for a person's approval."
    )
    gates: Annotated[list[Gate], Field(min_length=1, max_length=16)] = Field(
        description="gates a candidate must pass; one per metric, k, pool and segment."
    )
    max_latency_p99_ms: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        default=None, description="maxLatencyP99Ms bounds the dark stack's answers before it may be promoted."
    )
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=31_536_000)] = Field(
        default=3600, description="progressDeadlineSeconds bounds each step but training, which has its own."
    )
    failure_limit: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="failureLimit: so many failed attempts at a step end a candidate."
    )
    inconclusive_limit: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="inconclusiveLimit: so many inconclusive evaluations end a candidate."
    )

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
    """What brings the former stack back after a promotion."""

    automatic: bool = Field(
        default=True, description="automatic: a failed check in the window brings the former stack back."
    )
    window_seconds: Annotated[int, Field(ge=0, le=604_800)] = Field(
        default=3600, description="windowSeconds: how long the former stack is kept running after a promotion."
    )
    checks: Annotated[list[Literal["podsReady"]], Field(max_length=2)] = Field(
        default=["podsReady"],
        description="checks of a new champion: podsReady (a server is ready and names its own ids); none: no check.",
    )


class RetrievalModelSpec(Manifest):
    """What one retrieval system is made from, and what it must prove before it serves."""

    suspend: bool = Field(
        default=False,
        description="suspend starts no new work and stops a training, which goes on later; the champion keeps serving, "
        "and a rollback that is asked for is made.",
    )
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
    revision_history_limit: Annotated[int, Field(ge=1, le=REVISION_HISTORY_MAX)] = Field(
        default=5,
        description="revisionHistoryLimit: this many promoted stacks besides the champion can be returned to, "
        "and this many candidates that were not promoted keep their files; older files are removed.",
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="deletionPolicy: Retain keeps all files when the object is deleted, Delete removes them first. "
        "The MLflow record stays in both cases.",
    )

    @model_validator(mode="after")
    def import_has_no_retraining(self) -> Self:
        if self.model.bundle_uri is not None and self.data.schedule is not None:
            raise ValueError(
                "data.schedule: found with model.bundleUri, expected none: an imported bundle is not retrained"
            )
        return self


__all__ = ["Gate", "Quantity", "RetrievalModelSpec"]

"""Which program with which arguments each step runs. The component's own --help documents them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import Evaluation, Index, Training
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.identity import digest
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

DEFAULT_SERVED_K = 2000  # the paper retrieves 2000 candidates
VERIFIED_MEMBERS = 50
TINY_PRESET = "preset:tiny"


def storage_root(model: RetrievalModel) -> str:
    return f"{model.spec.storage.uri.rstrip('/')}/{model.metadata.namespace}/{model.metadata.name}"


def bundle_uri(model: RetrievalModel, revision: str) -> str:
    return model.spec.model.bundle_uri or f"{storage_root(model)}/revisions/{revision}/bundle"


def generation_uri(model: RetrievalModel, key: str) -> str:
    return f"{storage_root(model)}/indexes/{key}"


def served_k(model: RetrievalModel) -> int:
    """How many items a client asks for."""
    return model.spec.index.served_k or DEFAULT_SERVED_K


def workload_name(model: RetrievalModel, step: WorkloadStep, key: str, attempt: int) -> str:
    return f"{model.metadata.name}-{key}-{step}-{attempt}"


def section_name(step: WorkloadStep) -> Literal["training", "evaluation", "index"]:
    """The manifest's section that shapes the step's pods: where and how large they are."""
    match step:
        case WorkloadStep.TRAIN:
            return "training"
        case WorkloadStep.EVALUATE | WorkloadStep.VERIFY:
            return "evaluation"
        case _:
            return "index"


def section(model: RetrievalModel, step: WorkloadStep) -> Training | Evaluation | Index:
    match section_name(step):
        case "training":
            return model.spec.training
        case "evaluation":
            return model.spec.evaluation
        case "index":
            return model.spec.index


def train(model: RetrievalModel, *, revision: str, data_uri: str) -> WorkloadSpec:
    """Dataset to bundle, or the import of a finished bundle."""
    if model.spec.model.bundle_uri is not None:
        imported = ("--import", model.spec.model.bundle_uri)
        return _spec(model, WorkloadStep.TRAIN, revision, "retrieval-train", imported)
    config = json.dumps(train_config(model, revision=revision, data_uri=data_uri), sort_keys=True)
    root = f"{storage_root(model)}/revisions/{revision}"
    arguments = ("--config", config, "--out", f"{root}/bundle", "--checkpoints", f"{root}/checkpoints")
    training = model.spec.training
    return _spec(
        model,
        WorkloadStep.TRAIN,
        revision,
        "retrieval-train",
        arguments,
        nodes=training.nodes,
        processes=training.processes_per_node,
        deadline_s=training.active_deadline_seconds,
    )


def train_config(model: RetrievalModel, *, revision: str, data_uri: str) -> dict[str, Any]:
    """The trainer's `--config` document: only what the user set; the rest is the trainer's default."""
    chosen = model.spec.model.explicit()
    base = model.spec.model.base
    config: dict[str, Any] = {
        "formatVersion": 1,
        "revision": revision,
        "dataset": data_uri,
        "base": {"preset": "tiny"} if base == TINY_PRESET else {"uri": base},
        "hyperparameters": _numbers(model.spec.training.hyperparameters.model_dump(by_alias=True, exclude_unset=True)),
    }
    config |= {field: chosen[field] for field in ("prompts", "pooling", "dimensions", "maxTokens") if field in chosen}
    return config


def index(
    model: RetrievalModel,
    step: WorkloadStep,
    *,
    key: str,
    bundle_id: str,
    bundle: str,
    data_uri: str,
    previous: str = "",
) -> WorkloadSpec:
    """One index generation. `previous` is a generation URI whose unchanged vectors are copied, "" for none.

    Members and the latency target are for serving: an evaluation scores the stored vectors, and asks no index.
    """
    spec = model.spec
    inputs = _index_inputs(model, step, key=key, bundle_id=bundle_id, bundle=bundle, data_uri=data_uri)
    arguments = ["build", *inputs, "--factory", spec.index.factory]
    arguments += ["--served-k", str(served_k(model))]
    if spec.model.served_dimension is not None:
        arguments += ["--served-dimension", str(spec.model.served_dimension)]
    if previous:
        arguments += ["--previous", previous]
    if step is WorkloadStep.INDEX_SERVING:
        if spec.index.latency_target_ms is not None:
            arguments += ["--latency-target-ms", str(spec.index.latency_target_ms)]
        if spec.index.members:
            arguments += ["--members"]
    return _spec(model, step, key, "retrieval-index", tuple(arguments))


def encode(
    model: RetrievalModel,
    step: WorkloadStep,
    *,
    key: str,
    bundle_id: str,
    bundle: str,
    data_uri: str,
    previous: str = "",
) -> WorkloadSpec | None:
    """The encoding of the same generation's shards, side by side; None when there is one, which the build encodes.

    The build that follows finds the shards and encodes none; what is missing all the same (files that somebody removed,
    another number of shards by now) it makes itself. `retrieval-index merge` would refuse, and that would be final.
    """
    shards = model.spec.index.encode_shards
    if shards == 1:
        return None
    inputs = _index_inputs(model, step, key=key, bundle_id=bundle_id, bundle=bundle, data_uri=data_uri)
    arguments = ("encode", *inputs, *(("--previous", previous) if previous else ()))
    return replace(_spec(model, WorkloadStep.ENCODE, key, "retrieval-index", arguments), shards=shards)


def _index_inputs(
    model: RetrievalModel, step: WorkloadStep, *, key: str, bundle_id: str, bundle: str, data_uri: str
) -> tuple[str, ...]:
    """What decides the vectors of a generation, and how they are divided."""
    kind = "serving" if step is WorkloadStep.INDEX_SERVING else "evaluation"
    inputs = ("--bundle", bundle, "--expected-bundle-id", bundle_id, "--dataset", data_uri, "--kind", kind)
    return (*inputs, "--out", generation_uri(model, key), "--shards", str(model.spec.index.encode_shards))


def evaluate(
    model: RetrievalModel,
    *,
    key: str,
    data_uri: str,
    candidate: tuple[str, str],
    champion: tuple[str, str] | None,
    anew: bool = False,
) -> WorkloadSpec:
    """Candidate and champion, each (bundle URI, evaluation generation URI), on the same held-out members.

    `anew`: not even the answers of single members that an earlier evaluation left are used.
    """
    settings = model.spec.evaluation
    gates = [gate.model_dump(mode="json", by_alias=True, exclude_none=True) for gate in model.spec.promotion.gates]
    arguments = ["run", "--dataset", data_uri]
    arguments += ["--candidate-bundle", candidate[0], "--candidate-generation", candidate[1]]
    if champion is not None:
        arguments += ["--champion-bundle", champion[0], "--champion-generation", champion[1]]
    arguments += ["--gates", json.dumps(gates, sort_keys=True), "--k", ",".join(map(str, settings.k))]
    arguments += ["--segments", json.dumps(settings.segments), "--confidence", str(settings.confidence)]
    arguments += ["--min-samples", str(settings.min_samples)]
    root = storage_root(model)
    arguments += ["--out", f"{root}/evaluations/{key}"]
    arguments += [] if anew else ["--cache", f"{root}/evaluations/cache"]
    return _spec(model, WorkloadStep.EVALUATE, key, "retrieval-evaluate", tuple(arguments))


def verify(model: RetrievalModel, *, key: str, record: StackRecord, address: str) -> WorkloadSpec:
    """Ask a dark stack for the `served_k` best items of some members, and compare with direct computation."""
    arguments = ["verify", "--url", address, "--bundle", record.bundle_uri, "--generation", record.generation_uri]
    arguments += ["--dataset", record.data_uri, "--members", str(VERIFIED_MEMBERS)]
    arguments += ["--k", str(served_k(model))]
    arguments += ["--out", f"{storage_root(model)}/verifications/{key}"]
    return _spec(model, WorkloadStep.VERIFY, key, "retrieval-evaluate", tuple(arguments))


def collect(model: RetrievalModel, *, key: str, attempt: int, names: Sequence[str]) -> WorkloadSpec:
    """Remove directories below the object's root."""
    return _removal(model, key, attempt, tuple(names))


def remove_all(model: RetrievalModel, *, attempt: int) -> WorkloadSpec:
    """Remove everything that the object made: its deletionPolicy is Delete."""
    return _removal(model, removal_key(model), attempt, ("--all",))


def removal_key(model: RetrievalModel) -> str:
    """The key of the removal of everything; no directory has it."""
    return digest("removal", {"uid": model.metadata.uid})


def _removal(model: RetrievalModel, key: str, attempt: int, what: tuple[str, ...]) -> WorkloadSpec:
    """It reports to no run: what it removed is over. What was brought here is named as what must stay."""
    brought = (model.spec.data.uri, model.spec.model.base, model.spec.model.bundle_uri)
    kept = [f"--keep={uri}" for uri in brought if uri and uri != TINY_PRESET]
    first = _spec(model, WorkloadStep.COLLECT, key, "retrieval-data", ("remove", storage_root(model), *what, *kept))
    return replace(first, name=workload_name(model, WorkloadStep.COLLECT, key, attempt), attempt=attempt)


def _spec(
    model: RetrievalModel,
    step: WorkloadStep,
    key: str,
    program: str,
    arguments: tuple[str, ...],
    *,
    nodes: int = 1,
    processes: int = 1,
    deadline_s: int = 0,
) -> WorkloadSpec:
    """A first attempt without a run; `attempts.ensure` fills both in."""
    return WorkloadSpec(
        name=workload_name(model, step, key, 1),
        step=step,
        key=key,
        attempt=1,
        program=program,
        arguments=arguments,
        nodes=nodes,
        processes=processes,
        deadline_s=deadline_s or model.spec.promotion.progress_deadline_seconds,
    )


def _numbers(value: Any) -> Any:
    """Decimals become JSON numbers, as the trainer's document has them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items() if inner is not None}
    return value

"""From a trained model to a complete bundle at its URI, reported; and recognising one that is there already."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_core.bundle import Bundle, write_bundle
from retrieval_core.differences import differences
from retrieval_core.encoding import encode_token_ids
from retrieval_core.errors import BadInput, Diverged
from retrieval_core.files import is_local, is_published, local_path, publish
from retrieval_core.reporting import report
from retrieval_trainer.assembly import Training
from retrieval_trainer.checkpoint import Progress
from retrieval_trainer.config import TrainConfig
from retrieval_trainer.distributed import is_first_rank, total
from retrieval_trainer.gather import world_size
from retrieval_trainer.journal import plot_curves
from retrieval_trainer.model import merged
from retrieval_trainer.validation import NEGATIVES, RANDOM_RECALL, K

Vectors = NDArray[np.float32]

LAST_FILE = "bundle.json"
# Items whose vectors are compared with each other at the end.
SPREAD_ITEMS = 256
# Mean cosine between different items from which an encoder counts as collapsed. At the default temperature of 0.05 a
# difference of 0.001 moves a logit by 0.02: nothing can be ranked by it.
COLLAPSED_COSINE = 0.999


def finished_bundle(config: TrainConfig, out: str) -> Bundle | None:
    """The bundle at `out` when it is this revision's; None when there is none yet.

    BadInput for another revision's, and for one that was trained otherwise than this document says. What it leaves
    open has the defaults of whichever version trained it.
    """
    if not is_published(out, LAST_FILE):
        return None
    bundle = Bundle.open(out)
    found = bundle.training.get("revision")
    if found != config.revision:
        raise BadInput(
            f"{out} holds the bundle of revision {found}, this is {config.revision}; "
            "give each revision a directory of its own"
        )
    chosen = config.hyperparameters.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    said = {"base": config.base.describe(), "dimensions": list(config.dimensions), "hyperparameters": chosen}
    others = differences(said, bundle.training | {"dimensions": list(bundle.manifest.embedding.dimensions)})
    if others:
        raise BadInput(
            f"{out} holds a bundle of revision {found} that was trained otherwise, with {', '.join(others)}; "
            "give this training another revision and directory"
        )
    return bundle


def require_spread(training: Training) -> None:
    """Diverged, on every rank, when the trained model gives nearly the same vector to all items. A collective."""
    collapsed = 0.0
    if is_first_rank() and training.steps > 0:
        collapsed = float(is_collapsed(_item_vectors(training)))
    if total(torch.tensor(collapsed, device=training.device)).item() > 0:
        raise Diverged(
            f"the encoder has collapsed: different items have a mean cosine above {COLLAPSED_COSINE}; try a lower "
            f"hyperparameters.learningRate (now {training.config.learning_rate:g}) or a longer warmupFraction"
        )


def is_collapsed(vectors: Vectors) -> bool:
    """Whether normalised vectors [n, D] of different prompts are nearly the same, or zero; False for fewer than two."""
    rows = len(vectors)
    if rows < 2:
        return False
    summed = vectors.astype(np.float64).sum(axis=0)
    mean_cosine = (summed @ summed - rows) / (rows * (rows - 1))  # over all pairs of different rows
    return bool(mean_cosine > COLLAPSED_COSINE or np.linalg.norm(vectors, axis=1).min() < 0.5)


def _item_vectors(training: Training) -> Vectors:
    """Of up to SPREAD_ITEMS items whose prompts differ, as of the end of the data."""
    count = training.examples.item_count
    items = np.unique(np.linspace(0, count - 1, min(count, SPREAD_ITEMS)).astype(np.int32))
    times = np.full(len(items), training.dataset.last_event_time + 1)
    distinct = list({tuple(ids) for ids in training.prompt_tokens.items(items, times)})
    return encode_token_ids(training.model, distinct, token_budget=training.micro_batch_tokens)


def publish_bundle(training: Training, progress: Progress, out: str) -> Bundle:
    """Write the bundle, complete at `out` when this returns. For the first rank."""
    with _local_directory(out) as directory:
        write_bundle(
            directory,
            model=merged(training.model).cpu(),
            tokenizer=training.tokenizer,
            prompts=training.prompts,
            percentiles=training.percentiles,
            dimensions=list(training.config.dimensions),
            dimension=training.config.dimensions[0],
            training=_record(training, progress),
            card=_card(training, progress),
        )
        publish(directory, out, LAST_FILE)
    # What was written here needs no second reading; what was sent elsewhere is read back, as every reader will.
    return Bundle.open(out, verify=not is_local(out))


def report_bundle(bundle: Bundle, history: tuple[dict[str, float], ...], config: TrainConfig) -> None:
    """Report a bundle of ours to MLflow, when asked to, with its curves."""
    artifacts = record_artifacts(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        if history:
            curves = Path(scratch) / "training.png"
            plot_curves(history, config, str(bundle.training["provenance"]), curves)
            artifacts["training.png"] = curves
        # The curves have these names too; a value that was reported twice would bend them.
        final = {f"final_{name}": value for name, value in (bundle.training.get("validation") or {}).items()}
        report(bundle.path / LAST_FILE, artifacts=artifacts, metrics=final)


def import_bundle(uri: str) -> Bundle:
    """Verify a finished bundle where it is, and report it as if it came from here. BadInput when it is not sound."""
    bundle = Bundle.open(uri)
    report(bundle.path / LAST_FILE, artifacts=record_artifacts(bundle))
    return bundle


def record_artifacts(bundle: Bundle) -> dict[str, Path]:
    """What the run keeps of a bundle: the manifest and the card are the source of the model version."""
    files = (bundle.path / name for name in (LAST_FILE, "README.md", "training.json"))
    return {f"bundle/{file.name}": file for file in files if file.exists()}  # a bundle made elsewhere may have no card


@contextmanager
def _local_directory(out: str) -> Iterator[Path]:
    if is_local(out):
        yield local_path(out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "bundle"


def _record(training: Training, progress: Progress) -> dict[str, Any]:
    """training.json (docs/contracts.md section 5), with what it took to train in this way again."""
    document = training.config.document()
    events = training.dataset.events
    return {
        "revision": training.config.revision,
        "dataset": training.dataset.spec.name,
        "snapshot": training.dataset.snapshot,
        "split": training.dataset.split.document(),
        "trainedThrough": int(events.time[~events.is_test].max()),
        "base": training.config.base.describe(),
        "hyperparameters": document["hyperparameters"],
        "provenance": training.dataset.spec.provenance,
        "seed": training.config.hyperparameters.seed,
        "steps": progress.step,
        "ranks": world_size(),
        "examples": len(training.examples),
        "validation": _last_look(progress),
    }


def _last_look(progress: Progress) -> dict[str, float]:
    looks = [point for point in progress.history if "recall_uniform" in point]
    return {name: value for name, value in looks[-1].items() if name != "step"} if looks else {}


def _card(training: Training, progress: Progress) -> str:
    parts = []
    if training.config.base.preset == "tiny":
        parts.append(
            "**Toy base.** The base is a two-layer language model made in seconds from the texts of this very dataset. "
            "It shows the life of a model, not how good one is: train from a pretrained base for that."
        )
    look = _last_look(progress)
    if look:
        rows = [
            f"| {pool} | {look[f'recall_{pool}']:.3f} | {look[f'popularity_recall_{pool}']:.3f} | {RANDOM_RECALL:.3f} |"
            for pool in ("uniform", "popular")
        ]
        parts.append(
            f"Recall@{K} on validation members ({training.dataset.spec.provenance} data), one positive among "
            f"{NEGATIVES} negatives; for tuning only, the gates are measured on other members:"
        )
        parts.append("\n".join(["| pool | model | popularity | random |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)

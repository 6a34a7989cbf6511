"""The training loop: resume, step, look, save. One step is `train_step`; what a batch is, is `sampling.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval_core.encoding import encode_token_ids
from retrieval_core.errors import Diverged
from retrieval_core.log import get_logger
from retrieval_trainer.assembly import StepInput, Training
from retrieval_trainer.checkpoint import Checkpoints, Progress
from retrieval_trainer.distributed import data_parallel, is_first_rank, total
from retrieval_trainer.encoder import DualEncoder
from retrieval_trainer.gather import gather_with_gradient, world_size
from retrieval_trainer.journal import Journal
from retrieval_trainer.loss import ColumnBias, Embeddings, contrastive_loss
from retrieval_trainer.optim import build_optimizer, learning_rate, set_learning_rate
from retrieval_trainer.prefetch import prefetch
from retrieval_trainer.validation import popularity_recall_at_10, recall_at_10, validation_prompts, validation_set

log = get_logger(__name__)

# Points kept of the loss curve, about: every checkpoint carries them, and a plot shows no more.
CURVE_POINTS = 1000


class Interrupted(Exception):
    """SIGTERM arrived and a checkpoint was written."""


@dataclass(frozen=True)
class StepReport:
    """Sums over the rows of all ranks divided by their number, except tokens (a sum) and grad_norm."""

    loss: float
    grad_norm: float
    hard_share: float
    positive_rank: float
    tokens: int
    stop: bool


def train(
    training: Training, checkpoints: Checkpoints, journal: Journal, stop_requested: Callable[[], bool]
) -> Progress:
    """Train from the newest checkpoint, or the start, to the last step. The model is trained in place.

    Raises Diverged on a non-finite loss or gradient, before the weights move, and Interrupted after SIGTERM.
    """
    optimizer = build_optimizer(training.model, weight_decay=training.config.hyperparameters.weight_decay)
    progress = _resume(training, checkpoints, optimizer)
    training = replace(training, resumed=progress)
    encoder = data_parallel(DualEncoder(training.model))
    every = training.config.hyperparameters.checkpoint_every_steps
    look = _validation_look(training)
    if progress.step == 0:
        progress = _with_look(progress, look(), journal)
    left = training.steps - progress.step
    positions = range(progress.position, progress.position + left * training.global_batch, training.global_batch)
    with journal.steps(progress.step, training.steps):
        for step_input in prefetch(training.step_input, positions):
            report = train_step(training, encoder, optimizer, step_input, step=progress.step, stop=stop_requested())
            progress = _advance(training, progress, report, journal)
            last = progress.step == training.steps
            if last or progress.step == training.steps // 2:
                progress = _with_look(progress, look(), journal)
            if last or report.stop or progress.step % every == 0:
                checkpoints.save(progress, training.model, optimizer)
            if report.stop and not last:
                raise Interrupted(f"stopped after step {progress.step} of {training.steps}; a checkpoint was written")
    return progress


def train_step(
    training: Training,
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_input: StepInput,
    *,
    step: int,
    stop: bool,
) -> StepReport:
    """One update over the global batch. Every rank calls it; all of them move, or none."""
    parameters = training.config.hyperparameters
    bfloat16 = parameters.precision == "bfloat16"
    tokens = step_input.tokens.to(training.device)
    bias = ColumnBias(step_input.bias.in_batch.to(training.device), step_input.bias.hard.to(training.device))

    encoder.train()
    with torch.autocast(training.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext():
        vectors = encoder(tokens)
    embeddings = global_columns(vectors, parameters.batch_size, shared_hard=parameters.hard_negative_scope == "all")
    report = contrastive_loss(
        embeddings, bias, temperature=parameters.temperature, dimensions=training.config.dimensions
    )
    optimizer.zero_grad(set_to_none=True)
    report.loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), parameters.max_grad_norm)

    # The only synchronisation with the device in a step; every rank learns the same numbers and decides alike.
    sums = total(
        torch.stack(
            [
                report.loss.detach(),
                norm.detach(),
                report.hard_gradient,
                report.negative_gradient,
                report.positive_rank,
                torch.tensor(float(tokens.tokens), device=training.device),
                torch.tensor(float(stop), device=training.device),
            ]
        ).double()
    ).tolist()
    loss, grad_norm = sums[0] / world_size(), sums[1] / world_size()
    _require_finite(loss, grad_norm, step, training)
    set_learning_rate(
        optimizer,
        learning_rate(
            step, steps=training.steps, peak=training.config.learning_rate, warmup_fraction=parameters.warmup_fraction
        ),
    )
    optimizer.step()
    return StepReport(
        loss=loss,
        grad_norm=grad_norm,
        hard_share=sums[2] / max(sums[3], 1e-12),
        positive_rank=sums[4] / training.global_batch,
        tokens=int(sums[5]),
        stop=sums[6] > 0,
    )


def global_columns(vectors: Tensor, rows: int, *, shared_hard: bool) -> Embeddings:
    """Split [B + B + B * H, D] of this rank into members, positives and hard negatives, the columns of all ranks."""
    members, positives, hard = vectors[:rows], vectors[rows : 2 * rows], vectors[2 * rows :]
    if shared_hard:
        return Embeddings(members, gather_with_gradient(positives), gather_with_gradient(hard))
    return Embeddings(members, gather_with_gradient(positives), hard.reshape(rows, -1, vectors.shape[1]))


def _resume(training: Training, checkpoints: Checkpoints, optimizer: torch.optim.Optimizer) -> Progress:
    uri = checkpoints.newest()
    if uri is None:
        return Progress()
    progress, exact = checkpoints.load(uri, training.model, optimizer)
    if not exact and is_first_rank():
        log.warning("the checkpoint was made by another number of ranks: training goes on, but not exactly as before")
    if is_first_rank():
        log.info("resuming", checkpoint=uri, step=progress.step)
    return progress


def _advance(training: Training, progress: Progress, report: StepReport, journal: Journal) -> Progress:
    point = {
        "step": progress.step + 1,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "hard_negative_gradient_share": report.hard_share,
        "positive_rank": report.positive_rank,
    }
    journal.step(point, report.tokens)
    keep = (progress.step + 1) % max(1, training.steps // CURVE_POINTS) == 0 or progress.step + 1 == training.steps
    history = (*progress.history, point) if keep else progress.history
    return Progress(progress.step + 1, progress.position + training.global_batch, history)


def _require_finite(loss: float, grad_norm: float, step: int, training: Training) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {grad_norm}"
    raise Diverged(
        f"{what} at step {step + 1} of {training.steps}, the weights were not moved by it; try a lower "
        f"hyperparameters.learningRate (now {training.config.learning_rate:g}), a longer warmupFraction or a higher "
        "temperature"
    )


def _validation_look(training: Training) -> Callable[[], dict[str, float]]:
    """Validation recall on rank 0; nothing on the others, which wait in the next step's first collective."""
    if not is_first_rank():
        return dict
    chosen = validation_set(training.dataset, training.view, training.examples)
    prompts = validation_prompts(chosen, training.prompt_tokens.members, training.prompt_tokens.items)
    popularity = {f"popularity_{name}": value for name, value in popularity_recall_at_10(chosen).items()}

    def encode(sequences: list[list[int]]) -> NDArray[np.float32]:
        return encode_token_ids(training.model, sequences, token_budget=training.micro_batch_tokens)

    return lambda: popularity | recall_at_10(prompts, encode)


def _with_look(progress: Progress, recalls: dict[str, float], journal: Journal) -> Progress:
    if not recalls:
        return progress
    point: dict[str, Any] = {"step": progress.step, **recalls}
    journal.look(point)
    return replace(progress, history=(*progress.history, point))

"""Everything a training needs, put together once, in the order of dependence: data, prompts, model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retrieval_core.dataset import Dataset, FeatureView, open_dataset
from retrieval_core.files import local_path
from retrieval_core.prompts import Percentiles, PromptRenderer, PromptSpec, add_tokens, added_tokens
from retrieval_trainer.bias import column_bias
from retrieval_trainer.checkpoint import Progress
from retrieval_trainer.config import TrainConfig
from retrieval_trainer.distributed import barrier, from_first_rank, is_first_on_node, is_first_rank
from retrieval_trainer.encoder import MICRO_BATCH_TOKENS, TokenBatch
from retrieval_trainer.examples import TrainingExamples, training_examples
from retrieval_trainer.gather import rank, world_size
from retrieval_trainer.loss import ColumnBias
from retrieval_trainer.model import attach_lora, base_sha256, load_base, require_positions
from retrieval_trainer.prompting import PromptTokens, training_numbers, with_budgets
from retrieval_trainer.proposal import MEASURING_POSITION, Proposals, measure_proposals
from retrieval_trainer.sampling import BatchSampler
from retrieval_trainer.tiny import tiny_base

# Examples whose prompts' numbers percentiles are fitted to: 100 buckets of 500 and more.
PERCENTILE_EXAMPLES = 50_000


@dataclass(frozen=True)
class StepInput:
    """What one step of one rank needs: its prompts, and the biases of its rows."""

    tokens: TokenBatch
    bias: ColumnBias


@dataclass(frozen=True)
class Training:
    """One training, ready to run. `model` is on `device`, with adapters when the method is lora.

    `base_sha256` is what a checkpoint needs unchanged of the base; see `_base_sha256`. `resumed` is where it goes on.
    """

    config: TrainConfig
    dataset: Dataset
    view: FeatureView
    examples: TrainingExamples
    sampler: BatchSampler
    proposals: Proposals | None
    prompts: PromptSpec
    percentiles: Percentiles
    prompt_tokens: PromptTokens
    tokenizer: Any
    base_sha256: str
    model: nn.Module
    device: torch.device
    resumed: Progress = field(default_factory=Progress)

    @property
    def global_batch(self) -> int:
        return self.config.hyperparameters.batch_size * world_size()

    @property
    def steps(self) -> int:
        """Optimizer steps in all. Epochs are rounded up to whole steps.

        Those done before count by their examples: another number of ranks takes other steps through the same epochs.
        """
        parameters = self.config.hyperparameters
        if parameters.steps is not None:
            return parameters.steps
        assert parameters.epochs is not None, "config.py: exactly one of steps and epochs"
        left = max(0.0, parameters.epochs * len(self.examples) - self.resumed.position)
        return self.resumed.step - int(-left // self.global_batch)

    @property
    def micro_batch_tokens(self) -> int:
        return MICRO_BATCH_TOKENS[self.device.type]

    def step_input(self, position: int) -> StepInput:
        """The input of this rank for the step whose global batch starts at `position` of the stream.

        Every rank draws the ids of the whole batch, which is cheap, and encodes its own rows: ids need no gathering.
        """
        parameters = self.config.hyperparameters
        batch = self.sampler.batch(position, self.global_batch)
        start = rank() * parameters.batch_size
        own = batch.rows(start, start + parameters.batch_size)
        bias = column_bias(
            self.examples,
            self.proposals,
            rows=own,
            first_column=start,
            columns=batch.item,
            hard=own.hard if parameters.hard_negative_scope == "own" else batch.hard.ravel(),
            positive_correction=parameters.positive_correction,
        )
        return StepInput(self.prompt_tokens.batch(own, self.micro_batch_tokens), bias)


def assemble(config: TrainConfig, device: torch.device) -> Training:
    """Open the dataset, fit the prompts, load the model. BadInput for whatever is wrong with any of them."""
    parameters = config.hyperparameters
    dataset = open_dataset(config.dataset)
    view, examples = FeatureView(dataset), training_examples(dataset)
    sampler = BatchSampler(examples, hard_negatives=parameters.hard_negatives, seed=parameters.seed)
    prompts = PromptSpec.parse(config.prompts) if config.prompts is not None else PromptSpec.default_for(dataset.spec)
    prompts = with_budgets(prompts, config.max_tokens)
    directory = _base_directory(config, dataset)
    base = load_base(directory, config.dimensions)
    require_positions(base, prompts.max_tokens, config.base.describe())
    seen = sampler.batch(MEASURING_POSITION, min(len(examples), PERCENTILE_EXAMPLES))
    percentiles = Percentiles.fit(prompts, training_numbers(dataset, view, seen))
    add_tokens(base.tokenizer, base.model, prompts, percentiles, parameters.seed)
    torch.manual_seed(parameters.seed)
    model = base.model
    if parameters.method == "lora":
        ids = base.tokenizer.convert_tokens_to_ids(added_tokens(prompts, percentiles))
        model = attach_lora(model, parameters.lora, ids)
    torch.manual_seed(parameters.seed + rank())  # dropout, where a base has it, differs between ranks
    renderer = PromptRenderer(prompts, percentiles, base.tokenizer)
    return Training(
        config=config,
        dataset=dataset,
        view=view,
        examples=examples,
        sampler=sampler,
        proposals=measure_proposals(sampler) if parameters.log_q else None,
        prompts=prompts,
        percentiles=percentiles,
        prompt_tokens=PromptTokens(view, prompts, renderer, base.tokenizer),
        tokenizer=base.tokenizer,
        base_sha256=_base_sha256(config, directory, device),
        model=model.to(device),
        device=device,
    )


def _base_directory(config: TrainConfig, dataset: Dataset) -> Path:
    """The base's local directory; on each node one rank makes the tiny preset or downloads, the others find it done."""
    if not is_first_on_node():
        barrier()
    path = local_path(config.base.uri) if config.base.uri is not None else tiny_base(dataset)
    if is_first_on_node():
        barrier()
    return path


def _base_sha256(config: TrainConfig, directory: Path, device: torch.device) -> str:
    """Hashed by the first rank, whose weights all ranks train; the others learn the digest. A collective.

    The preset's weights count only where they are frozen: a full training has all weights in its checkpoints, and the
    preset, made anew on another machine after a restart, differs in the last bits.
    """
    weights = config.base.preset is None or config.hyperparameters.method == "lora"
    return from_first_rank(base_sha256(directory, weights=weights) if is_first_rank() else None, device)

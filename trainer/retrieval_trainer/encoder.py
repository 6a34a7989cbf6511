"""Token ids -> pooled vectors: the forward pass of the shared encoder, for training and validation.

Prompts are tokenised exactly as `retrieval_core.encoding.Encoder` does and pooled by its `mean_pool`, so a trained
model means the same when it serves (tests/component/trainer/test_trainer_bundle.py compares the two).
Identical prompts of a batch are encoded once; the others are sorted by length and padded within micro-batches, which
on a CPU trains about twice the tokens per second of one padded batch.

Legend: n prompts, u distinct prompts, T tokens of the longest prompt of a micro-batch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from retrieval_core.encoding import length_sorted_batches, mean_pool

# Padded tokens of a micro-batch. Measured with the tiny preset on two cores (prompts of 13 to 145 tokens, thousands of
# tokens/s): 512 -> 24, 1024 -> 29, 2048 -> 29, 4096 -> 24, 16384 -> 12. The GPU number is a gut feeling.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class TokenBatch:
    """n prompts as micro-batches of their u distinct token sequences.

    input_ids and attention_mask: int64 [rows, T] per micro-batch; place int64[n]: the row, over all micro-batches, of
    each prompt; tokens: without padding, each distinct prompt once.
    """

    input_ids: list[Tensor]
    attention_mask: list[Tensor]
    place: Tensor
    tokens: int

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(
            [part.to(device, non_blocking=True) for part in self.input_ids],
            [part.to(device, non_blocking=True) for part in self.attention_mask],
            self.place.to(device, non_blocking=True),
            self.tokens,
        )


def token_batch(sequences: Sequence[Sequence[int]], token_budget: int) -> TokenBatch:
    """Pack n token sequences; a micro-batch has at most `token_budget` tokens, padding included, or one row."""
    distinct: dict[tuple[int, ...], int] = {}
    number = [distinct.setdefault(tuple(sequence), len(distinct)) for sequence in sequences]
    unique = list(distinct)
    parts = list(length_sorted_batches([len(sequence) for sequence in unique], token_budget))
    row_of = np.empty(len(unique), dtype=np.int64)
    row_of[np.concatenate(parts)] = np.arange(len(unique))
    padded = [_pad([unique[row] for row in part]) for part in parts]
    return TokenBatch(
        [ids for ids, _ in padded],
        [mask for _, mask in padded],
        torch.from_numpy(row_of[number]),
        sum(len(sequence) for sequence in unique),
    )


def _pad(sequences: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Right padding with id 0, which the mask hides."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class DualEncoder(nn.Module):
    """One causal LM for members and items. A step calls it once, so that DDP synchronises its gradients once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """[n, D] float32, pooled and not normalised (the loss cuts to narrower widths first)."""
        pairs = zip(batch.input_ids, batch.attention_mask, strict=True)
        pooled = torch.cat([forward_features(self.model, ids, mask) for ids, mask in pairs])
        return pooled[batch.place]


def forward_features(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """[rows, D] float32 of one padded micro-batch: the seam for packing and cached gradients."""
    hidden = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return mean_pool(hidden, attention_mask)

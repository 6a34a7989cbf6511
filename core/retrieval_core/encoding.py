"""The one place that turns features into vectors: training validation, index builds, evaluation and serving use it.

features -> prompt -> token ids -> length-sorted padded batches -> backbone -> mean pooling -> L2 norm.

This is the reference path: padded batches, causal attention as the model was trained with, pooling in fp32. A faster
path (packing, another runtime) replaces `run_batch` and must agree with it: within 1e-5 in fp32.

Shapes: B batch rows, T tokens of the longest row, D hidden size, n prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_core.bundle import Bundle, load_model, load_tokenizer
from retrieval_core.errors import BadInput, Diverged
from retrieval_core.prompts import Features, PromptRenderer

__all__ = ["Encoder", "encode_token_ids", "load_model", "load_tokenizer", "mean_pool", "normalise", "truncate"]

Vectors = NDArray[np.float32]
# Called with (prompts done, prompts in all) after each batch.
Progress = Callable[[int, int], None]

# Prompts tokenised and sorted by length together: enough that batches hold almost no padding, little enough that the
# token ids of a million items are never in memory at once.
WINDOW = 8192


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding: hidden [B, T, D] of any float dtype, mask [B, T] -> fp32 [B, D].

    mask is 1 for a token and 0 for padding. A row without tokens gives zeros.
    """
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.to(torch.float32) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def normalise(vectors: Tensor) -> Tensor:
    """Rows of unit length [.., D]; a zero row stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def truncate(vectors: Vectors, dimension: int) -> Vectors:
    """The first `dimension` columns of float32 [n, D], rows of unit length again (Matryoshka, arXiv 2205.13147)."""
    if not 1 <= dimension <= vectors.shape[1]:
        raise ValueError(f"cannot cut vectors of width {vectors.shape[1]} to {dimension}")
    cut = vectors[:, :dimension].astype(np.float32, copy=False)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


class Encoder:
    """A bundle's model, tokenizer and renderer on one device. `encode_*` may be called from one thread at a time."""

    def __init__(self, bundle: Bundle, device: str = "cpu", token_budget: int = 8192) -> None:
        """`token_budget`: rows x longest row of a batch, at least one row; it bounds memory, not results."""
        self.bundle = bundle
        self.token_budget = token_budget
        self.tokenizer = bundle.tokenizer()
        self.renderer = PromptRenderer(bundle.prompts, bundle.percentiles, self.tokenizer)
        self.model = bundle.model().to(device).requires_grad_(requires_grad=False)

    @property
    def dimension(self) -> int:
        """The full width D."""
        return self.bundle.manifest.embedding.dimension

    def encode_items(self, items: Sequence[Features], progress: Progress | None = None) -> Vectors:
        """float32 [n, D] of item features."""
        return self.encode_prompts([self.renderer.item(features) for features in items], progress)

    def encode_members(self, members: Sequence[Features], progress: Progress | None = None) -> Vectors:
        """float32 [n, D] of member features."""
        return self.encode_prompts([self.renderer.member(features) for features in members], progress)

    def encode_prompts(self, prompts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """float32 [n, D] of rendered prompts, rows of unit length at full width, in the given order.

        Raises BadInput for a prompt without tokens or longer than the bundle's budget (it is never cut silently),
        Diverged when the model yields a number that is not finite.
        """
        vectors = np.empty((len(prompts), self.dimension), dtype=np.float32)
        for start in range(0, len(prompts), WINDOW):
            window = prompts[start : start + WINDOW]
            token_ids = self.token_ids(window, first=start)
            report = _shifted(progress, start, len(prompts))
            vectors[start : start + len(window)] = encode_token_ids(
                self.model, token_ids, token_budget=self.token_budget, progress=report
            )
        return vectors

    def token_ids(self, prompts: Sequence[str], first: int = 0) -> list[list[int]]:
        """Token ids of rendered prompts; `first` is the number of the first prompt in error messages."""
        if not prompts:
            return []
        encoded = self.tokenizer(
            list(prompts), padding=False, truncation=False, return_attention_mask=False, verbose=False
        )
        token_ids: list[list[int]] = encoded["input_ids"]
        longest = self.bundle.manifest.embedding.max_tokens.longest
        for number, ids in enumerate(token_ids, start=first):
            if not ids:
                raise BadInput(f"prompt {number} is empty")
            if len(ids) > longest:
                raise BadInput(f"prompt {number} has {len(ids)} tokens, this bundle takes at most {longest}")
        return token_ids


def encode_token_ids(
    model: Any, token_ids: Sequence[Sequence[int]], *, token_budget: int, progress: Progress | None = None
) -> Vectors:
    """float32 [n, D] of token ids (BOS and EOS as the tokenizer adds them), in the given order.

    `model`: a backbone on any device; it is put into eval mode for the time of the call, so a model in training can be
    validated. Raises Diverged when it yields a number that is not finite.
    """
    vectors = np.zeros((len(token_ids), model.config.hidden_size), dtype=np.float32)
    was_training = model.training
    model.eval()
    done = 0
    try:
        for rows in length_sorted_batches([len(ids) for ids in token_ids], token_budget):
            vectors[rows] = normalise(run_batch(model, [token_ids[row] for row in rows])).cpu().numpy()
            if not np.isfinite(vectors[rows]).all():
                raise Diverged(f"the model yields numbers that are not finite, for prompt {_first_bad(vectors, rows)}")
            done += len(rows)
            if progress:
                progress(done, len(token_ids))
    finally:
        model.train(was_training)
    return vectors


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length: rows x longest row is at most the budget, or one row.

    Longest first, so that a device runs out of memory at once or not at all.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def run_batch(model: Any, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Pooled hidden states, fp32 [B, D], before normalisation: the seam for a faster path."""
    longest = max(len(ids) for ids in token_ids)
    # Padded on the right with any id: causal attention lets no token see it, and the mask keeps it out of the mean.
    padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in token_ids], device=model.device)
    lengths = torch.tensor([len(ids) for ids in token_ids], device=model.device)
    mask = (torch.arange(longest, device=model.device) < lengths.unsqueeze(1)).to(torch.int64)
    hidden = model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
    return mean_pool(hidden, mask)


def _first_bad(vectors: Vectors, rows: list[int]) -> int:
    return next(row for row in rows if not np.isfinite(vectors[row]).all())


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    """Progress of a window as progress of the whole."""
    return None if progress is None else lambda done, _: progress(start + done, total)

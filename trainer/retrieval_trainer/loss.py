"""InfoNCE over in-batch and hard negatives, with additive column biases and nested (Matryoshka) widths.

For row i with cosine c and temperature t (arXiv 1807.03748; arXiv 2205.13147 for the widths)

    l_i = -log( exp(c(m_i, x_i) / t) / sum_j exp(c(m_i, x_j) / t + b_ij) )

where j runs over every rank's positives and the hard negatives, and the bias b_ij (bias.py) is 0 for the row's own
positive, minus the log of how often the column's item is sampled, or -inf for a masked column.

Local loss: L_r = (W / N) * sum of l_i over the B rows of rank r. Data-parallel training averages gradients over ranks,
(1 / W) * sum_r grad L_r = (1 / N) * sum over all N rows of grad l_i, which is the single-process gradient.

Legend: B rows of this rank, N = W * B rows and positives of all ranks, H hard-negative columns, D full width. All
tensors are float32: bfloat16 keeps 8 bits, and a cosine times 20 needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retrieval_trainer.gather import rank


@dataclass(frozen=True)
class Embeddings:
    """Unnormalised vectors of one batch at full width.

    members [B, D]; positives [N, D], row i of rank r at column r * B + i; hard [B, H, D] when each row has its own hard
    negatives, [H, D] when all rows share them, with H = 0 for none.
    """

    members: Tensor
    positives: Tensor
    hard: Tensor


@dataclass(frozen=True)
class ColumnBias:
    """What is added to the scaled cosines: in_batch [B, N], hard [B, H]; -inf masks, own positives have 0."""

    in_batch: Tensor
    hard: Tensor


@dataclass(frozen=True)
class LossReport:
    """loss: the local loss L_r, with gradient. The rest are sums over local rows at full width, without gradient.

    hard_gradient / negative_gradient is the hard negatives' share of the gradient that pushes members away from
    negatives; positive_rank counts from 1 among the unmasked columns, by plain cosine.
    """

    loss: Tensor
    hard_gradient: Tensor
    negative_gradient: Tensor
    positive_rank: Tensor


def contrastive_loss(
    embeddings: Embeddings, bias: ColumnBias, *, temperature: float, dimensions: Sequence[int]
) -> LossReport:
    """The mean over `dimensions` of the loss on vectors cut to that width; weights are equal as in the MRL paper."""
    rows = embeddings.members.shape[0]
    target = rank() * rows + torch.arange(rows, device=embeddings.members.device)
    total = torch.zeros((), device=embeddings.members.device)
    full_width = None
    for dimension in dimensions:
        cosines = _cosines(embeddings, dimension)
        logits = cosines / temperature + torch.cat([bias.in_batch, bias.hard], dim=1)
        total = total + F.cross_entropy(logits, target, reduction="sum") / len(dimensions)
        if full_width is None:
            full_width = _diagnose(cosines.detach(), logits.detach(), target, bias.in_batch.shape[1])
    assert full_width is not None, "dimensions is never empty (config.py)"
    return LossReport(total / rows, *full_width)  # W / N = 1 / B: every rank has B rows


def _cosines(embeddings: Embeddings, dimension: int) -> Tensor:
    """[B, N + H]: in-batch columns, then hard ones."""
    members = F.normalize(embeddings.members[..., :dimension], dim=-1)
    positives = F.normalize(embeddings.positives[..., :dimension], dim=-1)
    hard = F.normalize(embeddings.hard[..., :dimension], dim=-1)
    own = torch.einsum("bd,bhd->bh", members, hard) if hard.ndim == 3 else members @ hard.T
    return torch.cat([members @ positives.T, own], dim=1)


def _diagnose(cosines: Tensor, logits: Tensor, target: Tensor, in_batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of l_i with respect to a negative's logit is its softmax probability."""
    probability = logits.softmax(dim=1)
    positive = probability.gather(1, target[:, None]).sum()
    above = (cosines > cosines.gather(1, target[:, None])) & logits.isfinite()
    rank_sum = (above.sum(dim=1) + 1).sum().float()
    return probability[:, in_batch:].sum(), probability.sum() - positive, rank_sum

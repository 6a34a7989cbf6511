"""Rows of every rank, stacked in rank order: with gradient for embeddings, without for ids and numbers.

Without a process group both are the identity, so callers never ask how many ranks there are. Every rank must call
with the same shape (a collective: a rank that does not call hangs the others until the group's time-out).

Legend: B rows per rank, W ranks, N = W * B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The place of this process among the ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of each rank -> [N, ...] on every rank, outside the graph."""
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[B, D] of each rank -> [N, D] on every rank; gradients return to the rank a row came from.

    Every rank uses a row in its own part of the loss, so the row's gradient is the sum over ranks (`backward` below).
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherWithGradient.apply(rows)
    return gathered


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A reduce-scatter would move W times fewer bytes, but gloo has none; N x D floats are small beside a model.
        total = gradients[0].contiguous()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.chunk(world_size())[rank()]

"""Process group and device of this rank: torchrun's environment decides, and one process needs none of it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from retrieval_core.errors import BadArguments
from retrieval_trainer.gather import rank, world_size

# How long a collective may wait: a lost node would otherwise hang its peers for ever. Gut feeling; the slowest
# legitimate wait is for rank 0 to save a bundle or to pretrain the tiny preset.
TIMEOUT_VARIABLE = "RETRIEVAL_COLLECTIVE_TIMEOUT_SECONDS"
DEFAULT_TIMEOUT_S = 900


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join torchrun's process group (gloo on CPU, nccl on CUDA) for the time of the block; yields this rank's device.

    Sets torch's threads to this rank's share of the cores unless OMP_NUM_THREADS says otherwise.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    device = _device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=dt.timedelta(seconds=_timeout_s()))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first_rank() -> bool:
    """Whether this rank writes files, logs and draws the progress bar."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Whether this rank makes what the ranks of a node share: its local files, its termination log."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def barrier() -> None:
    """Wait for every rank; nothing with one."""
    if world_size() > 1:
        dist.barrier()


def data_parallel(model: nn.Module) -> nn.Module:
    """DistributedDataParallel over several ranks (rank 0's weights are sent to all), else the model itself."""
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place, without gradient."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def from_first_rank(digest: str | None, device: torch.device) -> str:
    """The sha256 in hex that the first rank passes, on every rank; the others pass None. A collective."""
    octets = torch.zeros(32, dtype=torch.uint8) if digest is None else torch.tensor(list(bytes.fromhex(digest)))
    shared = octets.to(device, torch.uint8)  # nccl sends what is on its device only
    if world_size() > 1:
        dist.broadcast(shared, src=0)
    return bytes(shared.tolist()).hex()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _timeout_s() -> int:
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_S))
    if not text.isdigit() or int(text) == 0:
        raise BadArguments(f"{TIMEOUT_VARIABLE} is {text!r}, expected a whole number of seconds above 0")
    return int(text)

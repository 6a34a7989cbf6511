"""A step of each configuration, under torchrun; rank 0 saves the gradients: step_worker.py OUT.safetensors CONFIG..."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from retrieval_trainer.assembly import assemble
from retrieval_trainer.config import load_config
from retrieval_trainer.distributed import data_parallel, process_group
from retrieval_trainer.encoder import DualEncoder
from retrieval_trainer.gather import rank
from retrieval_trainer.loop import train_step
from retrieval_trainer.optim import build_optimizer


def gradients(config: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Of one step over the first global batch, by parameter name."""
    training = assemble(load_config(config), device)
    encoder = data_parallel(DualEncoder(training.model))
    optimizer = build_optimizer(training.model, weight_decay=0.0)
    train_step(training, encoder, optimizer, training.step_input(0), step=0, stop=False)
    return {name: p.grad for name, p in training.model.named_parameters() if p.grad is not None}


def main(out: str, *configs: str) -> None:
    with process_group() as device:
        found = {f"{number}/{name}": g for number, c in enumerate(configs) for name, g in gradients(c, device).items()}
        if rank() == 0:
            save_file(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

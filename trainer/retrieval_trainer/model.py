"""The model that is trained: a local causal LM, whole or with LoRA.

Weights are float32 whatever the base was saved in: bfloat16 weights lose most AdamW steps at learning rates of 1e-5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retrieval_core.bundle import load_model, load_tokenizer
from retrieval_core.errors import BadInput
from retrieval_core.files import canonical_json, sha256_file
from retrieval_trainer.config import Lora

# What a base is besides its weights: the architecture, and every spelling of a tokenizer that transformers reads.
_IDENTIFYING_FILES = ("config.json", "*token*", "vocab.*", "merges.txt", "*.model", "tekken.json")


@dataclass(frozen=True)
class BaseModel:
    """A headless transformers model in float32 on the CPU, and its fast tokenizer."""

    model: Any
    tokenizer: Any


def load_base(path: Path, dimensions: tuple[int, ...]) -> BaseModel:
    """Load a Hugging Face directory to be trained at `dimensions`.

    BadInput when it has no tokenizer, only pickle weights or code of its own, when it is not a causal LM, or when the
    first of `dimensions` is not its hidden size.
    """
    tokenizer, model = load_tokenizer(path), load_model(path)
    model.config.use_cache = False
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token serves
    width = int(model.config.hidden_size)
    if dimensions[0] != width:
        raise BadInput(
            f"dimensions: the first is {dimensions[0]}, but the hidden size of base {path} is {width}; "
            f"put {width} first, narrower ones after it"
        )
    _require_causal(model, path)
    return BaseModel(model, tokenizer)


def require_positions(base: BaseModel, max_tokens: Mapping[str, int], name: str) -> None:
    """BadInput when a prompt of `max_tokens` (by side) may be longer than what the base has positions for.

    With learnt positions such a prompt crashes, with rotary ones it is beyond what the base has seen. Models without
    positions (state spaces, ALiBi) name no limit.
    """
    limit = getattr(base.model.config, "max_position_embeddings", None)
    side = max(max_tokens, key=lambda side: max_tokens[side])
    if limit is not None and max_tokens[side] > limit:
        raise BadInput(
            f"prompts: maxTokens of {side} is {max_tokens[side]}, but base {name} has {limit} positions "
            f"(max_position_embeddings); lower maxTokens to {limit} or less, or take a base with a longer context"
        )


def base_sha256(path: Path, *, weights: bool) -> str:
    """Hex digest over names and contents of a base's config and tokenizer files and, with `weights`, of its weights.

    Reads every byte once, in pieces: half a minute for 7 billion weights in bfloat16 (0.5 GB/s on one busy core).
    """
    patterns = (*_IDENTIFYING_FILES, *(("*.safetensors",) if weights else ()))
    files = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    listing = sorted((file.name, sha256_file(file)) for file in files)
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def _require_causal(model: Any, path: Path) -> None:
    """A later token must not change an earlier position: tried on the model, not guessed from its name."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]]) % model.config.vocab_size
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    if not torch.allclose(hidden[0, :3], hidden[1, :3], atol=1e-4, rtol=1e-4):
        raise BadInput(f"base {path} ({model.config.model_type}) lets a token see later ones, expected a causal LM")


def attach_lora(model: Any, lora: Lora, token_ids: list[int]) -> nn.Module:
    """Freeze `model`, add adapters to every linear layer, and train the embedding rows of `token_ids` in full.

    Adapters start without effect and draw from torch's generator: seed it before.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - seconds to load, and not every training has adapters

    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # contrastive batches are the regulariser; trainings here are short
        target_modules="all-linear",
        trainable_token_indices={name: token_ids},
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def merged(model: Any) -> Any:
    """The plain transformers model, adapters and trained token rows folded in; a model without them is returned."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model

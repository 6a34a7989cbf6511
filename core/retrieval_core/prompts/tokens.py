"""The tokens a prompt spec adds to a tokenizer, and their first rows in a model.

They are special tokens: `special=True` splits the text before anything else looks at it, survives saving, and is parsed
alike by AutoTokenizer and sentence-transformers. That user text cannot become one is the work of `safe_text.py`.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from retrieval_core.prompts.percentiles import UNKNOWN_TOKEN, ZERO_TOKEN, Percentiles, bucket_token
from retrieval_core.prompts.spec import PromptSpec


def field_token(scope: str, name: str) -> str:
    """The added token of a field; scope is member, history or item."""
    return f"<|{scope}.{name}|>"


def added_tokens(spec: PromptSpec, percentiles: Percentiles) -> list[str]:
    """All tokens the prompts need, in a fixed order: fields, then percentiles when a field is rendered as one."""
    fields = [field_token(scope, field.name) for scope, field in spec.scoped_fields()]
    if not spec.percentile_names():
        return fields
    return [*fields, ZERO_TOKEN, UNKNOWN_TOKEN, *map(bucket_token, percentiles.buckets)]


def add_tokens(tokenizer: Any, model: Any | None, spec: PromptSpec, percentiles: Percentiles, seed: int) -> list[str]:
    """Add the prompts' tokens to the tokenizer and give the new ones their first rows in the model, if one is given.

    A token that the tokenizer already has (a base that was trained with such prompts) keeps its id and its learnt row.
    The model's embedding grows when it is too small and never shrinks: some bases are padded for speed.
    Returns the new tokens. Deterministic by seed: a token's row depends on seed, token and the base's rows alone.
    """
    wanted = added_tokens(spec, percentiles)
    known = tokenizer.get_vocab()
    new = [token for token in wanted if token not in known]
    base_rows = len(tokenizer)
    # Tokens that exist are named again: a base may have them as ordinary words, which would not split the text.
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False, lstrip=False, rstrip=False, single_word=False) for t in wanted],
        special_tokens=True,
    )
    if model is not None:
        _grow(model, len(tokenizer))
        rows = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in new}
        for weight in _token_weights(model):
            _initialise(weight, rows, base_rows, seed)
    return new


def _grow(model: Any, rows: int) -> None:
    if model.get_input_embeddings().weight.shape[0] < rows:
        # mean_resizing would make all new rows near-identical, and depend on the global random state.
        model.resize_token_embeddings(rows, mean_resizing=False)


def _token_weights(model: Any) -> list[Tensor]:
    """The input embedding and, where the head has weights of its own, the output embedding; each [rows, D]."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    untied = head is not None and head.weight.data_ptr() != embedding.data_ptr()
    return [embedding, head.weight] if untied else [embedding]


def _initialise(weight: Tensor, rows: dict[str, int], base_rows: int, seed: int) -> None:
    """Write first rows: percentiles on a smooth ramp, other tokens as noise around the mean of the base's rows."""
    with torch.no_grad():
        base = weight[:base_rows].float().cpu()
        mean, spread = base.mean(dim=0), base.std(dim=0)
        norm = base.norm(dim=1).median()
        low, high = _ramp_ends(base.shape[1], seed)
        for token, row in rows.items():
            bucket = _bucket_of(token)
            if bucket is None:
                first = mean + spread * _noise(base.shape[1], seed, token)
            else:
                # A quarter of a circle, so that every row has the same norm and neighbours the same distance.
                angle = math.pi / 2 * (bucket - 1) / 99
                first = norm * (math.cos(angle) * low + math.sin(angle) * high)
            weight[row] = first.to(weight)


def _bucket_of(token: str) -> int | None:
    number = token.removeprefix("<|pct.").removesuffix("|>")
    return int(number) if number.isdecimal() else None


def _ramp_ends(width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two orthogonal unit vectors [D], D > 1: the directions of percentile 1 and 100."""
    low = torch.nn.functional.normalize(_noise(width, seed, "ramp low"), dim=0)
    high = _noise(width, seed, "ramp high")
    return low, torch.nn.functional.normalize(high - (high @ low) * low, dim=0)


def _noise(width: int, seed: int, name: str) -> Tensor:
    """Standard normal fp32 [D] that depends on seed and name alone, not on which other tokens there are."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(width, generator=generator)

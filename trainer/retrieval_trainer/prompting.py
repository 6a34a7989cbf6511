"""Examples as token sequences: every prompt is rendered as of its example's time, never with anything later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.dataset.spec import SECONDS_PER_DAY
from retrieval_core.prompts import PromptRenderer, PromptSpec
from retrieval_trainer.config import MaxTokens
from retrieval_trainer.encoder import TokenBatch, token_batch
from retrieval_trainer.sampling import Batch


class PromptTokens:
    """Token ids of members and items as of a time, exactly as the serving encoder would make them.

    Reading is safe from a prefetching thread.
    """

    def __init__(self, view: FeatureView, spec: PromptSpec, renderer: PromptRenderer, tokenizer: Any) -> None:
        self._view = view
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._max_history = spec.member.history.max_items if spec.member.history else 0

    def members(self, members: NDArray[np.int32], times: NDArray[np.int64]) -> list[list[int]]:
        """One sequence per (member, time)."""
        pairs = zip(members.tolist(), times.tolist(), strict=True)
        features = (self._view.member_features(member, time, self._max_history) for member, time in pairs)
        return self._tokenize([self._renderer.member(f) for f in features])

    def items(self, items: NDArray[np.int32], times: NDArray[np.int64]) -> list[list[int]]:
        """One sequence per (item, time)."""
        pairs = zip(items.tolist(), times.tolist(), strict=True)
        return self._tokenize([self._renderer.item(self._view.item_features(item, time)) for item, time in pairs])

    def batch(self, batch: Batch, micro_batch_tokens: int) -> TokenBatch:
        """Members [B], then positives [B], then hard negatives [B * H] row by row, all as of their row's time.

        A missing hard negative is encoded as its row's positive, which costs nothing (the prompt is the same) and is
        masked in the loss.
        """
        hard = np.where(batch.hard < 0, batch.item[:, None], batch.hard)
        items = np.concatenate([batch.item, hard.ravel()])
        times = np.concatenate([batch.time, np.repeat(batch.time, hard.shape[1])])
        return token_batch([*self.members(batch.member, batch.time), *self.items(items, times)], micro_batch_tokens)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Equal texts once: most items have the same prompt at most times."""
        distinct = list(dict.fromkeys(texts))
        ids = dict(zip(distinct, self._tokenizer(distinct)["input_ids"] if distinct else [], strict=True))
        return [ids[text] for text in texts]


def with_budgets(spec: PromptSpec, max_tokens: MaxTokens | None) -> PromptSpec:
    """The prompts with the configuration's token budgets, validated again. BadInput when the fields do not fit."""
    if max_tokens is None:
        return spec
    document = spec.document()
    document["member"]["maxTokens"] = max_tokens.member
    document["item"]["maxTokens"] = max_tokens.item
    return PromptSpec.parse(document, "prompts (with maxTokens)")


def training_numbers(dataset: Dataset, view: FeatureView, batch: Batch) -> dict[str, NDArray[Any]]:
    """The numbers prompts of a batch show, by `side.NAME`: what percentiles are fitted to.

    Items are the positives and the hard negatives at their row's time, so the buckets are those training sees.
    """
    present = batch.hard >= 0
    items = np.concatenate([batch.item, batch.hard[present]])
    times = np.concatenate([batch.time, np.broadcast_to(batch.time[:, None], batch.hard.shape)[present]])
    counts = view.item_counts(items, times)
    numbers: dict[str, NDArray[Any]] = {
        "member.activity": view.member_activity(batch.member, batch.time),
        "item.engagements": counts.engagements,
        "item.impressions": counts.impressions,
    }
    if dataset.item_created_at is not None:
        numbers["item.ageDays"] = (times - dataset.item_created_at[items]) / SECONDS_PER_DAY
    numbers |= _columns("member", dataset.spec.members.count, dataset.member_columns, batch.member)
    return numbers | _columns("item", dataset.spec.items.count, dataset.item_columns, items)


def _columns(
    side: str, names: tuple[str, ...], columns: Mapping[str, Any], rows: NDArray[np.int32]
) -> dict[str, NDArray[Any]]:
    return {f"{side}.{name}": columns[name].to_numpy().astype(np.float64)[rows] for name in names}

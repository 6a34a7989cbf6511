"""A cheap look at recall during training, on validation members only: for the log and the curve, never for a gate.

Each validation member's first test positive competes with 142 negatives (random recall@10 = 10 / 143 = 0.07, the random
level of arXiv 2510.14223). Negatives come from small shared banks, so a look costs about a thousand prompts: `uniform`
over the items, `popular` by training engagements. Popularity (the count in the prompt) is ranked beside the model.
The gates' evaluation is another program's, on other members (retrieval-evaluate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_trainer.examples import TrainingExamples

MEMBERS = 256  # standard error of a recall of 0.5: 0.03
BANK = 320  # negatives that all members of a pool share; large enough to leave 142 after those engaged with
NEGATIVES = 142
K = 10
RANDOM_RECALL = K / (NEGATIVES + 1)

Vectors = NDArray[np.float32]
Encode = Callable[[NDArray[np.int32], NDArray[np.int64]], Vectors]


@dataclass(frozen=True)
class ValidationSet:
    """V members with one positive each, and their pools. member, item int32[V]; member_time, item_time int64[V].

    pools: name -> int32 [V, NEGATIVES]; popularity int64 [I] engagements as of the items' time.
    """

    member: NDArray[np.int32]
    member_time: NDArray[np.int64]
    item: NDArray[np.int32]
    item_time: int
    pools: Mapping[str, NDArray[np.int32]]
    popularity: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.member)


def validation_set(dataset: Dataset, view: FeatureView, examples: TrainingExamples) -> ValidationSet:
    """Choose members, positives and negatives, always the same for a dataset. Empty without validation members."""
    random = np.random.default_rng(0)
    events = dataset.events
    item_time = dataset.split.test_from if dataset.split.test_from is not None else dataset.last_event_time + 1
    items = np.arange(len(dataset.item_ids), dtype=np.int32)
    items = items[examples.exists(items, np.full(len(items), item_time))]
    candidates = np.flatnonzero(
        events.is_test & events.engaged & dataset.is_validation_member[events.member] & np.isin(events.item, items)
    )
    candidates = candidates[~examples.has_engaged(events.member[candidates], events.item[candidates])]
    _, first = np.unique(events.member[candidates], return_index=True)  # events are in time order
    chosen = np.sort(random.permutation(candidates[first])[:MEMBERS])
    member, item = events.member[chosen], events.item[chosen]
    popularity = np.zeros(len(dataset.item_ids), dtype=np.int64)
    popularity[items] = view.item_counts(items, np.full(len(items), item_time)).engagements
    trained = np.bincount(examples.item, minlength=len(popularity))[items].astype(np.float64)
    weights = {"uniform": np.full(len(items), 1.0 / len(items)), "popular": trained / trained.sum()}
    engaged = _engagements(dataset)
    pools = {}
    for name, weight in weights.items():
        bank = random.choice(items, size=min(BANK, int(np.count_nonzero(weight))), replace=False, p=weight)
        pools[name] = _pool(bank, member, item, engaged, random)
    member_from = dataset.split.member_test_from
    member_time = np.full(len(member), item_time) if member_from is None else member_from[member]
    return ValidationSet(member, member_time.astype(np.int64), item, item_time, pools, popularity)


def recall_at_10(chosen: ValidationSet, encode_members: Encode, encode_items: Encode) -> dict[str, float]:
    """`recall_uniform`, `recall_popular`: the share of members whose positive is among the first ten of its pool.

    Vectors [n, D] need not be normalised. Ties count as half before the positive.
    """
    if len(chosen) == 0:
        return {}
    everything = np.unique(np.concatenate([chosen.item, *(pool.ravel() for pool in chosen.pools.values())]))
    vectors = _unit(encode_items(everything, np.full(len(everything), chosen.item_time)))
    scores = _unit(encode_members(chosen.member, chosen.member_time)) @ vectors.T
    place = {int(item): column for column, item in enumerate(everything)}
    return _recalls(chosen, lambda row, item: scores[row, place[item]])


def popularity_recall_at_10(chosen: ValidationSet) -> dict[str, float]:
    """The same for ranking by engagements as of the items' time."""
    return _recalls(chosen, lambda _, item: float(chosen.popularity[item])) if len(chosen) else {}


def _recalls(chosen: ValidationSet, score: Callable[[int, int], float]) -> dict[str, float]:
    recalls = {}
    for name, pool in chosen.pools.items():
        hits = 0
        for row, (positive, negatives) in enumerate(zip(chosen.item.tolist(), pool.tolist(), strict=True)):
            own, others = score(row, positive), np.array([score(row, item) for item in negatives])
            hits += int(np.count_nonzero(others > own) + np.count_nonzero(others == own) / 2 < K)
        recalls[f"recall_{name}"] = hits / len(chosen)
    return recalls


def _engagements(dataset: Dataset) -> set[tuple[int, int]]:
    """Of validation members, over all time: none of them may be a negative."""
    events = dataset.events
    rows = events.engaged & dataset.is_validation_member[events.member]
    return set(zip(events.member[rows].tolist(), events.item[rows].tolist(), strict=True))


def _pool(
    bank: NDArray[np.int32],
    members: NDArray[np.int32],
    items: NDArray[np.int32],
    engaged: set[tuple[int, int]],
    random: np.random.Generator,
) -> NDArray[np.int32]:
    """[V, NEGATIVES] items of the bank the member never engaged with; a small bank repeats items."""
    rows = []
    for member, item in zip(members.tolist(), items.tolist(), strict=True):
        allowed = np.array([i for i in bank.tolist() if i != item and (member, i) not in engaged], dtype=np.int32)
        if len(allowed) == 0:
            allowed = bank
        rows.append(random.choice(allowed, size=NEGATIVES, replace=len(allowed) < NEGATIVES))
    return np.array(rows, dtype=np.int32).reshape(len(members), NEGATIVES)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))

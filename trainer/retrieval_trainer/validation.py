"""A cheap look at recall during training, on validation members only: for the log and the curve, never for a gate.

Each validation member's first test positive competes with 142 negatives (random recall@10 = 10 / 143 = 0.07, the random
level of arXiv 2510.14223), all of them rendered and counted as of the start of the member's test part. Negatives come
from small shared banks, so a look costs about a thousand prompts: `uniform` over the items, `popular` by training
engagements. With a perMember split that is another time for each member, and an item has as many prompts as its counts
have renderings (MovieLens latest-small: 5000 in all); each is tokenised once and encoded once per look. Popularity (the
count in the prompt) is ranked beside the model. The gates' evaluation is another program's, on other members
(retrieval-evaluate).

Legend: V validation members, C = 1 + NEGATIVES candidates of a member and pool, P distinct item prompts, I items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_trainer.examples import TrainingExamples

MEMBERS = 256  # standard error of a recall of 0.5: 0.03
BANK = 320  # negatives that all members of a pool share; large enough to leave 142 after those engaged with
NEGATIVES = 142
K = 10
RANDOM_RECALL = K / (NEGATIVES + 1)

TokenIds = list[list[int]]
Tokenise = Callable[[NDArray[np.int32], NDArray[np.int64]], TokenIds]
Encode = Callable[[TokenIds], NDArray[np.float32]]


@dataclass(frozen=True)
class ValidationSet:
    """V members, each as of its own time. member int32[V]; time int64[V], the start of its test part.

    pools: name -> int32 [V, C] items, the positive first; popularity: name -> int64 [V, C] their engagements.
    """

    member: NDArray[np.int32]
    time: NDArray[np.int64]
    pools: Mapping[str, NDArray[np.int32]]
    popularity: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.member)


@dataclass(frozen=True)
class ValidationPrompts:
    """The token ids of V members and of P distinct item prompts; place: pool -> int64 [V, C] rows of `items`."""

    members: TokenIds
    items: TokenIds
    place: Mapping[str, NDArray[np.int64]]


def validation_set(dataset: Dataset, view: FeatureView, examples: TrainingExamples) -> ValidationSet:
    """Choose members, positives and negatives, always the same for a dataset. Empty without validation members.

    As in the evaluation, a member of a perMember split needs a positive in the training part as well, and an item that
    was created after the member's time is neither positive nor negative.
    """
    random = np.random.default_rng(0)
    starts = _test_starts(dataset)
    rows = np.sort(random.permutation(_first_test_positives(dataset, examples, starts))[:MEMBERS])
    member, positive = dataset.events.member[rows], dataset.events.item[rows]
    time = starts[member]
    pools = _pools(dataset, examples, member, positive, time=time, random=random) if len(member) else {}
    popularity = {
        name: view.item_counts(pool.ravel(), np.repeat(time, pool.shape[1])).engagements.reshape(pool.shape)
        for name, pool in pools.items()
    }
    return ValidationSet(member, time, pools, popularity)


def validation_prompts(chosen: ValidationSet, members: Tokenise, items: Tokenise) -> ValidationPrompts:
    """Tokenise everything a look encodes, as of each member's time; every look of a training encodes the same."""
    if len(chosen) == 0:
        return ValidationPrompts([], [], {})
    times, moment = np.unique(chosen.time, return_inverse=True)
    keys = {name: pool * np.int64(len(times)) + moment[:, None] for name, pool in chosen.pools.items()}
    pairs = np.unique(np.concatenate([key.ravel() for key in keys.values()]))  # of an item and a time
    number: dict[tuple[int, ...], int] = {}
    token_ids = items((pairs // len(times)).astype(np.int32), times[pairs % len(times)])
    row = np.array([number.setdefault(tuple(ids), len(number)) for ids in token_ids], dtype=np.int64)
    place = {name: row[np.searchsorted(pairs, key)] for name, key in keys.items()}
    return ValidationPrompts(members(chosen.member, chosen.time), [list(ids) for ids in number], place)


def recall_at_10(prompts: ValidationPrompts, encode: Encode) -> dict[str, float]:
    """`recall_uniform`, `recall_popular`: the share of members whose positive is among the first ten of its pool.

    `encode` gives float32 [n, D] of n token sequences, which need not be normalised. Equal prompts have equal scores;
    ties count as half before the positive. Empty without members.
    """
    if not prompts.members:
        return {}
    scores = _unit(encode(prompts.members)) @ _unit(encode(prompts.items)).T
    return {f"recall_{name}": _recall(np.take_along_axis(scores, p, axis=1)) for name, p in prompts.place.items()}


def popularity_recall_at_10(chosen: ValidationSet) -> dict[str, float]:
    """The same for ranking by engagements as of each member's time."""
    return {f"recall_{name}": _recall(counts) for name, counts in chosen.popularity.items()}


def _recall(scores: NDArray[Any]) -> float:
    """Of scores [V, C], the positive's first."""
    own, others = scores[:, :1], scores[:, 1:]
    before = (others > own).sum(axis=1) + (others == own).sum(axis=1) / 2
    return float((before < K).mean())


def _test_starts(dataset: Dataset) -> NDArray[np.int64]:
    """int64 [M]: when each member's test part starts."""
    split = dataset.split
    if split.member_test_from is not None:
        return split.member_test_from
    assert split.test_from is not None, "one of the two is set"
    return np.full(len(dataset.member_ids), split.test_from, dtype=np.int64)


def _first_test_positives(dataset: Dataset, examples: TrainingExamples, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the events, one per validation member that can be asked."""
    events = dataset.events
    rows = np.flatnonzero(events.is_test & events.engaged & dataset.is_validation_member[events.member])
    member, item = events.member[rows], events.item[rows]
    keep = examples.exists(item, starts[member]) & ~examples.has_engaged(member, item)
    if dataset.split.member_test_from is not None:
        keep &= np.isin(member, examples.member)
    _, first = np.unique(member[keep], return_index=True)  # events are in time order
    return rows[keep][first]


def _pools(
    dataset: Dataset,
    examples: TrainingExamples,
    member: NDArray[np.int32],
    positive: NDArray[np.int32],
    *,
    time: NDArray[np.int64],
    random: np.random.Generator,
) -> dict[str, NDArray[np.int32]]:
    """The pools of a ValidationSet."""
    items = np.arange(len(dataset.item_ids), dtype=np.int32)
    items = items[examples.exists(items, np.full(len(items), time.max()))]
    trained = np.bincount(examples.item, minlength=len(dataset.item_ids))[items].astype(np.float64)
    engaged = _engagements(dataset)
    pools = {}
    for name, weight in {"uniform": np.ones(len(items)), "popular": trained}.items():
        size = min(BANK, int(np.count_nonzero(weight)))
        bank = random.choice(items, size=size, replace=False, p=weight / weight.sum())
        rows = [
            [own, *_negatives(bank, {own} | engaged[asked], examples.exists(bank, moment), random)]
            for asked, own, moment in zip(member.tolist(), positive.tolist(), time, strict=True)
        ]
        pools[name] = np.array(rows, dtype=np.int32)
    return pools


def _negatives(
    bank: NDArray[np.int32], engaged: set[int], exists: NDArray[np.bool_], random: np.random.Generator
) -> NDArray[np.int32]:
    """[NEGATIVES] existing items of the bank without those engaged with; a small bank repeats items.

    Where there is none, the whole bank serves: every member has a pool.
    """
    allowed = bank[exists & ~np.isin(bank, list(engaged))]
    if len(allowed) == 0:
        allowed = bank
    return random.choice(allowed, size=NEGATIVES, replace=len(allowed) < NEGATIVES)


def _engagements(dataset: Dataset) -> dict[int, set[int]]:
    """Of validation members, over all time: none of them may be a negative."""
    events = dataset.events
    rows = events.engaged & dataset.is_validation_member[events.member]
    engaged: dict[int, set[int]] = defaultdict(set)
    for member, item in zip(events.member[rows].tolist(), events.item[rows].tolist(), strict=True):
        engaged[member].add(item)
    return engaged


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))

"""Simulates the feed of the synthetic world, day by day: who comes, what is shown, what they engage with.

For each visit the feed considers CANDIDATES items by exposure (Zipf popularity times recency), a noisy ranker puts
SLATE of them before the member, and the member engages by the oracle's probability. A member is shown an item once.
A day depends only on the world and on earlier days.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from retrieval_core.dataset.arrays import BoolArray, Int64Array
from retrieval_core.dataset.spec import SECONDS_PER_DAY
from retrieval_core.sources.affinity import RANKER_SHARPNESS, Floats, Indices
from retrieval_core.sources.world import World

CANDIDATES = 40
SLATE = 5
SECONDS_PER_ITEM = (15, 90)
OVERDRAW = 1.1  # visits beyond the day's quota, for those whose slate shrinks because items were shown before


@dataclass(frozen=True)
class Interactions:
    """Rows in time order; times are seconds since the world began."""

    member: Indices
    item: Indices
    time: Int64Array
    engaged: BoolArray


def simulate(world: World, days: Iterable[int]) -> Interactions:
    """Interactions of `days`, which are 0, 1, 2, ... without a gap (an iterable, so that a progress bar fits)."""
    quotas = _daily_quotas(world)
    seen = np.empty(0, dtype=np.int64)
    parts: list[Interactions] = []
    for day in days:
        part = _simulate_day(world, day, int(quotas[day]), seen)
        seen = np.union1d(seen, _pair_keys(world, part.member, part.item))
        parts.append(part)
    return Interactions(
        member=np.concatenate([part.member for part in parts]),
        item=np.concatenate([part.item for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        engaged=np.concatenate([part.engaged for part in parts]),
    )


def _daily_quotas(world: World) -> Int64Array:
    """Interactions of each day of the horizon: as many as the members there are want, in total the world's number."""
    joined = np.searchsorted(world.members.joined, np.arange(world.size.horizon_days))
    demand = np.concatenate([[0.0], np.cumsum(world.members.activity)])[joined]
    cumulative = np.floor(np.cumsum(demand) / demand.sum() * world.size.interactions + 1e-9)
    quotas: Int64Array = np.diff(cumulative, prepend=0).astype(np.int64)
    return quotas


def _simulate_day(world: World, day: int, quota: int, seen: Int64Array) -> Interactions:
    rng = np.random.default_rng([world.size.seed, 3, day])
    visits = int(np.ceil(quota / SLATE * OVERDRAW))
    # Who joined and what was created before midnight takes part, so nothing happens before it exists.
    members = _draw(rng, world.members.activity[: np.searchsorted(world.members.joined, day)], visits)
    appeal = world.items.appeal
    exposure = np.exp(appeal.log_exposure(np.arange(world.size.items), day))
    candidates = _draw(rng, exposure, (visits, CANDIDATES))
    affinity = appeal.affinity(world.members.interests.at(members, day), candidates)
    shown_before = _is_in(_pair_keys(world, members[:, None], candidates), seen)
    slate, shown = _rank(rng, affinity, shown_before | _repeats_in_row(candidates))
    items = np.take_along_axis(candidates, slate, axis=1)
    probability = appeal.engagement_probability(np.take_along_axis(affinity, slate, axis=1), items)
    engaged = rng.random(items.shape) < probability
    longest = SLATE * SECONDS_PER_ITEM[1]
    start = rng.integers(0, SECONDS_PER_DAY - longest, visits)
    time = day * SECONDS_PER_DAY + start[:, None] + np.cumsum(rng.integers(*SECONDS_PER_ITEM, items.shape), axis=1)
    member = np.broadcast_to(members[:, None], items.shape)
    rows = Interactions(member[shown], items[shown], time[shown], engaged[shown])
    return _once_per_pair(world, rows, quota)


def _rank(rng: np.random.Generator, affinity: Floats, excluded: BoolArray) -> tuple[Indices, BoolArray]:
    """Columns of the slate [visits, SLATE], best first, and which of its places are filled.

    Gumbel noise makes the ranker draw without replacement, in proportion to exp(sharpness * affinity).
    """
    scores = RANKER_SHARPNESS * affinity + rng.gumbel(size=affinity.shape)
    scores[excluded] = -np.inf
    slate = np.argsort(-scores, axis=1)[:, :SLATE]
    return slate, np.isfinite(np.take_along_axis(scores, slate, axis=1))


def _once_per_pair(world: World, rows: Interactions, quota: int) -> Interactions:
    """The first `quota` rows, in time order, without a pair shown twice in different visits of the day."""
    by_time = np.lexsort((rows.item, rows.member, rows.time))
    keys = _pair_keys(world, rows.member, rows.item)[by_time]
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first)
    # Drop the surplus evenly over the day, not its evening.
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(quota, len(kept))).astype(np.int64))]
    order = by_time[kept]
    return Interactions(rows.member[order], rows.item[order], rows.time[order], rows.engaged[order])


def _pair_keys(world: World, members: Indices, items: Indices) -> Int64Array:
    return members * world.size.items + items


def _draw(rng: np.random.Generator, weights: Floats, shape: int | tuple[int, ...]) -> Indices:
    """Indices in proportion to `weights`, with replacement."""
    cumulative = np.cumsum(weights)
    found = np.searchsorted(cumulative, rng.random(shape) * cumulative[-1], side="right")
    drawn: Indices = np.minimum(found, len(weights) - 1)
    return drawn


def _is_in(keys: Int64Array, ascending: Int64Array) -> BoolArray:
    if not len(ascending):
        return np.zeros(keys.shape, dtype=np.bool_)
    place = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    found: BoolArray = ascending[place] == keys
    return found


def _repeats_in_row(candidates: Indices) -> BoolArray:
    """Bool like `candidates`: the same item stands further left."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ascending = np.take_along_axis(candidates, order, axis=1)
    same = np.zeros(candidates.shape, dtype=np.bool_)
    same[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
    repeats = np.empty_like(same)
    np.put_along_axis(repeats, order, same, axis=1)
    return repeats

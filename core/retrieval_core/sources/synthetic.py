"""`retrieval-data generate`: the first days of a synthetic world as a dataset, with its oracle beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrieval_core.dataset.arrays import BoolArray
from retrieval_core.dataset.spec import SECONDS_PER_DAY, DatasetSpec
from retrieval_core.errors import BadArguments
from retrieval_core.sources.feed import Interactions, simulate
from retrieval_core.sources.oracle import oracle_tables
from retrieval_core.sources.world import EPOCH, TOPIC_NAMES, World, WorldSize, make_world, seconds
from retrieval_core.sources.writing import DatasetTables, strings

# A pair is shown once, and the feed prefers a few topics: beyond this share of all pairs it would run dry.
LARGEST_SHARE_OF_PAIRS = 0.05


@dataclass(frozen=True)
class Snapshot:
    """Which part of the world to write, and how."""

    days: int
    test_days: int
    shuffle_labels: bool = False


def require_possible(size: WorldSize, snapshot: Snapshot) -> None:
    """BadArguments, naming the flag, when the world or the snapshot cannot exist."""
    if not 0 < snapshot.days <= size.horizon_days:
        raise BadArguments(f"--days is {snapshot.days}, expected 1 to {size.horizon_days} (--horizon-days)")
    if not 0 < snapshot.test_days < snapshot.days:
        raise BadArguments(f"--test-days is {snapshot.test_days}, expected 1 to {snapshot.days - 1} (below --days)")
    most = int(size.members * size.items * LARGEST_SHARE_OF_PAIRS)
    if size.interactions > most:
        raise BadArguments(
            f"--interactions is {size.interactions:,}, but a member is shown an item once: with --members "
            f"{size.members:,} and --items {size.items:,} at most {most:,}; use more members or items"
        )


def generate(size: WorldSize, snapshot: Snapshot, days: Iterable[int]) -> DatasetTables:
    """The dataset of a snapshot. `days` iterates over range(snapshot.days), for instance through a progress bar."""
    require_possible(size, snapshot)
    world = make_world(size)
    rows = simulate(world, days)
    test_from = (snapshot.days - snapshot.test_days) * SECONDS_PER_DAY
    if snapshot.shuffle_labels:
        rows = _shuffle_training_engagements(rows, rows.time < test_from, size.seed)
    members = int(np.searchsorted(world.members.joined, snapshot.days))
    items = int(np.searchsorted(world.items.appeal.created, snapshot.days))
    return DatasetTables(
        spec=_spec(size, snapshot, EPOCH + test_from),
        members=_members_table(world, members),
        items=_items_table(world, items),
        interactions=_interactions_table(rows, members, items),
        extra=oracle_tables(world, members, items),
    )


def _shuffle_training_engagements(rows: Interactions, training: BoolArray, seed: int) -> Interactions:
    """Give each training engagement the item of another engagement of the same day.

    Which items were popular when, and who was active, stay true; who likes what becomes noise. Within a day every
    item existed, so no engagement comes before its item.
    """
    rng = np.random.default_rng([seed, 4])
    item = rows.item.copy()
    shuffled = np.flatnonzero(training & rows.engaged)
    day = rows.time[shuffled] // SECONDS_PER_DAY
    in_random_order = np.lexsort((rng.random(len(shuffled)), day))  # days ascend, so positions stay in their day
    item[shuffled] = rows.item[shuffled[in_random_order]]
    keys = np.stack([rows.member, item, rows.time])
    _, unique = np.unique(keys, axis=1, return_index=True)
    kept = np.sort(unique)
    return Interactions(rows.member[kept], item[kept], rows.time[kept], rows.engaged[kept])


def _spec(size: WorldSize, snapshot: Snapshot, test_from: int) -> DatasetSpec:
    description = (
        f"Synthetic feed, days 0 to {snapshot.days} of {size.horizon_days}, seed {size.seed}: {size.members} members, "
        f"{size.items} items, {size.interactions} interactions over the whole horizon."
    )
    if snapshot.shuffle_labels:
        description += " SABOTAGED: training engagements were given random items; the test part is intact."
    return DatasetSpec.model_validate(
        {
            "formatVersion": 1,
            "name": "synthetic-feed" + ("-shuffled-labels" if snapshot.shuffle_labels else ""),
            "description": description,
            "provenance": "synthetic",
            "members": {
                "id": "member_id",
                "text": ["headline"],
                "category": ["industry", "seniority"],
                "createdAt": "joined_at",
            },
            "items": {
                "id": "item_id",
                "text": ["title"],
                "category": ["topic"],
                "count": ["words"],
                "createdAt": "created_at",
                "attributes": ["author"],
            },
            "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
            "counts": {"windowDays": 30},
            "split": {"mode": "global", "testFrom": test_from},
            "validationMembers": 0.1,
        }
    )


def _members_table(world: World, count: int) -> pa.Table:
    members = world.members
    return pa.table(
        {
            "member_id": _ids("m", count),
            "headline": strings(members.headline[:count]),
            "industry": strings(members.industry[:count]),
            "seniority": strings(members.seniority[:count]),
            "joined_at": seconds(members.joined[:count]),
        }
    )


def _items_table(world: World, count: int) -> pa.Table:
    items = world.items
    return pa.table(
        {
            "item_id": _ids("i", count),
            "title": strings(items.title[:count]),
            "topic": strings(TOPIC_NAMES[items.primary[:count]]),
            "author": strings(items.author[:count]),
            "words": items.words[:count],
            "created_at": seconds(items.appeal.created[:count]),
        }
    )


def _interactions_table(rows: Interactions, members: int, items: int) -> pa.Table:
    return pa.table(
        {
            "member_id": _ids("m", members).take(pa.array(rows.member)),
            "item_id": _ids("i", items).take(pa.array(rows.item)),
            "time": rows.time + EPOCH,
            "engaged": rows.engaged,
        }
    )


def _ids(prefix: str, count: int) -> pa.Array:
    return strings([f"{prefix}{number:06d}" for number in range(count)])

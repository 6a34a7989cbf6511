"""The ceiling of a synthetic dataset: what ranking by the oracle that made it would reach.

The oracle lies in `oracle/` beside the dataset. `open_dataset` never reads it and no snapshot id covers it, so nothing
that trains or serves can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.dataset.arrays import Int64Array
from retrieval_core.dataset.spec import SECONDS_PER_DAY
from retrieval_core.errors import BadInput
from retrieval_core.sources.affinity import Appeal, Floats, Indices, Interests
from retrieval_core.sources.world import EPOCH, World

MEMBERS_FILE = "oracle/members.parquet"
ITEMS_FILE = "oracle/items.parquet"
NEGATIVES = 142  # with one positive, random recall@10 is 0.07, the paper's random level
K = 10
MATCHED_NEIGHBOURS = 200  # negatives of a matched pool are drawn from this many items of nearest popularity


@dataclass(frozen=True)
class Ceiling:
    """Recall@10 by (pool, ranking), over `positives` test engagements."""

    positives: int
    absent: int  # test engagements with items that did not exist when the test part began: in no pool
    recall: Mapping[tuple[str, str], float]

    def half_width(self, pool: str, ranking: str) -> float:
        """Half of a 95 % normal interval; zero for random, which is known exactly."""
        if ranking == "random":
            return 0.0
        value = self.recall[pool, ranking]
        return float(1.96 * np.sqrt(value * (1 - value) / self.positives))


def oracle_tables(world: World, members: int, items: int) -> dict[str, pa.Table]:
    """The oracle's knowledge of the first `members` and `items`, in the order of the dataset's rows."""
    interests, appeal = world.members.interests, world.items.appeal
    return {
        MEMBERS_FILE: pa.table(
            {
                "before": pa.array(list(interests.before[:members])),
                "after": pa.array(list(interests.after[:members])),
                "drift_from": interests.drift_from[:members],
                "drift_days": interests.drift_days[:members],
            }
        ),
        ITEMS_FILE: pa.table(
            {
                "created": appeal.created[:items],
                "topics": pa.array(list(appeal.topics[:items])),
                "quality": appeal.quality[:items],
                "zipf": appeal.zipf[:items],
            }
        ),
    }


def measure_ceiling(dataset: Dataset, *, max_positives: int, seed: int) -> Ceiling:
    """Recall@10 of the oracle and of popularity, in uniform and in popularity-matched pools of 1 + 142 items.

    Raises BadInput when the dataset has no oracle or its test part is too small for pools.
    """
    interests, appeal = _read_oracle(dataset)
    as_of = dataset.split.test_from
    assert as_of is not None  # the generator writes both
    assert dataset.item_created_at is not None
    rng = np.random.default_rng(seed)
    corpus = np.flatnonzero(dataset.item_created_at <= as_of)
    counts = FeatureView(dataset).item_counts(corpus, np.full(len(corpus), as_of)).engagements
    popularity = np.zeros(len(dataset.item_ids), dtype=np.int64)
    popularity[corpus] = counts
    tests = np.flatnonzero(dataset.events.is_test & dataset.events.engaged)
    present = tests[dataset.item_created_at[dataset.events.item[tests]] <= as_of]
    chosen = np.sort(rng.permutation(present)[:max_positives])
    if not len(chosen) or len(corpus) <= 2 * NEGATIVES:
        raise BadInput(f"{dataset.path}: {len(present)} test positives and {len(corpus)} items are too few for pools")
    member = dataset.events.member[chosen].astype(np.int64)
    day = (dataset.events.time[chosen] - EPOCH) / SECONDS_PER_DAY
    recall: dict[tuple[str, str], float] = {}
    for name, pools in _pools(dataset, rng, chosen, corpus, popularity).items():
        recall[name, "oracle"] = _recall(appeal.log_positive(interests.at(member, np.floor(day)), pools, day))
        recall[name, "random"] = K / (NEGATIVES + 1)
        recall[name, "popularity"] = _recall(popularity[pools].astype(np.float64))
    return Ceiling(len(chosen), len(tests) - len(present), recall)


def _read_oracle(dataset: Dataset) -> tuple[Interests, Appeal]:
    paths = [dataset.path / MEMBERS_FILE, dataset.path / ITEMS_FILE]
    if not all(path.is_file() for path in paths):
        raise BadInput(f"{dataset.path} has no oracle/: only datasets made by `retrieval-data generate` have one")
    members, items = (pq.read_table(path) for path in paths)
    return (
        Interests(*(_array(members, name) for name in ("before", "after", "drift_from", "drift_days"))),
        Appeal(*(_array(items, name) for name in ("created", "topics", "quality", "zipf"))),
    )


def _array(table: pa.Table, column: str) -> Floats:
    values = table.column(column).combine_chunks()
    if pa.types.is_list(values.type):
        return np.asarray(values.flatten(), dtype=np.float64).reshape(len(values), -1)
    return np.asarray(values, dtype=np.float64)


def _pools(
    dataset: Dataset, rng: np.random.Generator, chosen: Indices, corpus: Indices, popularity: Int64Array
) -> dict[str, Indices]:
    """Item indices [n, 143] by pool, the positive first; negatives are items the member never engaged with."""
    events = dataset.events
    by_popularity = corpus[np.lexsort((rng.random(len(corpus)), popularity[corpus]))]
    rank = np.empty(len(dataset.item_ids), dtype=np.int64)
    rank[by_popularity] = np.arange(len(by_popularity))
    pools: dict[str, list[Indices]] = {"uniform": [], "matched": []}
    for event in chosen:
        positive = events.item[event]
        engaged = events.item[(events.member == events.member[event]) & events.engaged]
        others = by_popularity[~np.isin(by_popularity, engaged)]
        if len(others) < NEGATIVES:
            raise BadInput(f"{dataset.path}: a member engaged with all but {len(others)} items; make more items")
        middle = int(np.searchsorted(rank[others], rank[positive]))
        start = max(0, min(middle - MATCHED_NEIGHBOURS // 2, len(others) - MATCHED_NEIGHBOURS))
        neighbours = others[start : start + MATCHED_NEIGHBOURS]
        for name, candidates in (("uniform", others), ("matched", neighbours)):
            negatives = rng.choice(candidates, NEGATIVES, replace=False)
            pools[name].append(np.concatenate([[positive], negatives]))
    return {name: np.asarray(rows) for name, rows in pools.items()}


def _recall(scores: Floats) -> float:
    """Mean probability that column 0 is among the best K when ties are broken at random."""
    better = (scores[:, 1:] > scores[:, :1]).sum(axis=1)
    equal = (scores[:, 1:] == scores[:, :1]).sum(axis=1)
    return float(np.clip((K - better) / (equal + 1), 0, 1).mean())

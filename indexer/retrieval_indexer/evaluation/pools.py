"""Pools: for each test positive 142 fixed negatives, the same for every model that is compared.

1 + 142 candidates make random recall@10 = 10/143 = 0.07, the random level of arXiv 2510.14223.

- `uniform`: drawn evenly from the corpus.
- `matched`: a run of 143 neighbours in the order of popularity (windowed engagements as of the member's time, equals
  in random order), in which the positive's place is drawn evenly. Popularity alone is right at the random level then:
  with the positive in the middle it would always be wrong, and a model that avoids popular items would look good.
  Only the ten most popular items, which have too few above them, are still found by popularity. It is the one that is
  gated.

What `matched` takes away is windowed popularity as of the member's time, and nothing else. Other scores that are the
same for all members still win there: the newest first in a feed (0.45 on a synthetic one), or counts of the whole
training part, which in a perMember split know what became popular later (0.30 on MovieLens, where windowed counts are
at 0.12). So a good value is not yet personal taste: how much of it is, only the difference to the baselines
`notPersonal` and `popularityTrained` (`scorers.py`) tells.

No item the member had engaged with, no test positive of the member, and no item that did not exist is a negative.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.errors import BadInput
from retrieval_core.generation import FileEntry
from retrieval_core.generation.writer import write_table
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet

NEGATIVES = 142
POOLS = ("uniform", "matched")
# Where a member has fewer than 142 possible negatives its pools have no rows.
Pool = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Pools:
    """Negatives per member and pool: `rows[pool][i]` int32 [p, 142] corpus rows, one row per positive of member i.

    A member with too few possible negatives has an empty array [0, 142]: it is not evaluated in pools.
    """

    rows: dict[str, list[Pool]]

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name in POOLS:
            for array in self.rows[name]:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def draw_pools(evaluation: EvaluationSet) -> Pools:
    """Draw every pool; what is drawn for a member depends on snapshot, member and time alone."""
    rows: dict[str, list[Pool]] = {name: [] for name in POOLS}
    popularity_at: tuple[int, npt.NDArray[np.int64]] | None = None
    for index, member_id in enumerate(evaluation.member_ids):
        time = int(evaluation.times[index])
        if popularity_at is None or popularity_at[0] != time:
            popularity_at = (time, evaluation.popularity(index))
        positives = evaluation.positives[index]
        eligible = ~evaluation.hidden(index)
        eligible[positives] = False
        candidates = np.flatnonzero(eligible).astype(np.int32)
        seed = hashlib.sha256(f"{evaluation.dataset.snapshot}/{member_id}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        if len(candidates) < NEGATIVES:
            for name in POOLS:
                rows[name].append(np.empty((0, NEGATIVES), np.int32))
            continue
        rows["uniform"].append(_draw_uniform(candidates, len(positives), random))
        rows["matched"].append(_draw_matched(candidates, positives, popularity_at[1], random))
    return Pools(rows)


def _draw_uniform(candidates: Pool, count: int, random: np.random.Generator) -> Pool:
    return np.stack([random.choice(candidates, NEGATIVES, replace=False, shuffle=False) for _ in range(count)])


def _draw_matched(
    candidates: Pool, positives: npt.NDArray[np.int64], popularity: npt.NDArray[np.int64], random: np.random.Generator
) -> Pool:
    """142 neighbours of the positive in the order of popularity, its place among them drawn evenly; ties at random."""
    own = popularity[candidates]
    order = np.lexsort((random.random(len(candidates)), own))
    ordered, counts = candidates[order], own[order]
    first = np.searchsorted(counts, popularity[positives], side="left")
    last = np.searchsorted(counts, popularity[positives], side="right")
    place = random.integers(first, last + 1)
    below = random.integers(0, NEGATIVES + 1, size=len(positives))
    start = np.clip(place - below, 0, len(ordered) - NEGATIVES)
    drawn: Pool = ordered[start[:, None] + np.arange(NEGATIVES)]
    return drawn


def write_pools(path: Path, pools: Pools, evaluation: EvaluationSet) -> FileEntry:
    """Store the pools by id: one row per (pool, member, positive)."""
    columns: dict[str, list[object]] = {"pool": [], "member_id": [], "item_id": [], "negatives": []}
    for name in POOLS:
        for index, negatives in enumerate(pools.rows[name]):
            for positive, row in zip(evaluation.positives[index], negatives, strict=False):
                columns["pool"].append(name)
                columns["member_id"].append(evaluation.member_ids[index])
                columns["item_id"].append(evaluation.item_ids[positive])
                columns["negatives"].append(evaluation.item_ids[row].tolist())
    return write_table(path, {name: pa.array(values) for name, values in columns.items()})


def read_pools(path: Path, evaluation: EvaluationSet) -> Pools:
    """Pools of an earlier evaluation; BadInput when they do not cover this evaluation's members and positives."""
    row_of = {str(item): row for row, item in enumerate(evaluation.item_ids)}
    stored: dict[tuple[str, str, str], list[str]] = {
        (entry["pool"], entry["member_id"], entry["item_id"]): entry["negatives"]
        for entry in pq.read_table(path).to_pylist()
    }
    rows: dict[str, list[Pool]] = {name: [] for name in POOLS}
    for name in POOLS:
        for index, member in enumerate(evaluation.member_ids):
            items = [str(evaluation.item_ids[positive]) for positive in evaluation.positives[index]]
            try:
                found = [
                    [row_of[n] for n in stored[name, member, item]] for item in items if (name, member, item) in stored
                ]
            except KeyError as error:
                raise BadInput(
                    f"{path}: negative {error} is not in the corpus; draw new pools (omit --pools)"
                ) from None
            if found and len(found) != len(items):
                raise BadInput(f"{path}: has no {name} pool for every positive of member {member}; omit --pools")
            rows[name].append(np.asarray(found, dtype=np.int32).reshape(-1, NEGATIVES))
    if not any(len(own) for name in POOLS for own in rows[name]):
        raise BadInput(f"{path} has no pool for any evaluated member: it belongs to another dataset; omit --pools")
    return Pools(rows)

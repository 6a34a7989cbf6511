"""What a build encodes: the items of a dataset as of a time, divided into shards.

A shard is a run of the dataset's item row groups, so that a build on one machine and an Indexed Job of many pods write
the same files. Its inputs have a hash: a shard that is on disk with the same hash is not encoded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import Dataset, Features, FeatureView
from retrieval_core.dataset.split import NO_TEST_PART
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.files import canonical_json
from retrieval_core.generation.manifest import FORMAT_VERSION, Kind

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 0."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `0/4`; BadArguments says what is allowed."""
        number, separator, of = text.partition("/")
        if not (separator and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise BadArguments(f"--shard is {text!r}, expected i/N with 0 <= i < N, for example 0/4")
        return cls(int(number), int(of))


@dataclass(frozen=True)
class Corpus:
    """The items of `dataset` that exist at `as_of`, seen as of then, for one bundle."""

    dataset: Dataset
    bundle: Bundle
    kind: Kind
    as_of: int

    @cached_property
    def view(self) -> FeatureView:
        return FeatureView(self.dataset, for_serving=self.kind == "serving")

    @cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """Items created at or before as_of, bool [I]."""
        return present_items(self.dataset, self.as_of)

    def rows(self, shard: Shard) -> Rows:
        """Dataset rows of the shard's items, in order. May be empty."""
        groups = np.array_split(np.asarray(self.dataset.item_row_groups, dtype=np.int64), shard.of)[shard.number]
        parts = [np.arange(start, stop) for start, stop in groups]
        rows: Rows = np.concatenate([np.empty(0, np.int64), *parts])
        existing: Rows = rows[self.present[rows]]
        return existing

    def features(self, rows: Rows) -> Iterator[Features]:
        return (self.view.item_features(int(row), self.as_of) for row in rows)

    def inputs_hash(self, shard: Shard) -> str:
        """Hash of all that decides a shard's content."""
        inputs = {
            "formatVersion": FORMAT_VERSION,
            "kind": self.kind,
            "bundleId": self.bundle.id,
            "snapshot": self.dataset.snapshot,
            "asOf": self.as_of,
            "shard": [shard.number, shard.of],
        }
        return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def present_items(dataset: Dataset, as_of: int) -> npt.NDArray[np.bool_]:
    """Items that exist at `as_of`, bool [I]; all of them when the dataset does not say when items were created."""
    if dataset.item_created_at is None:
        return np.ones(len(dataset.item_ids), dtype=np.bool_)
    return np.asarray(dataset.item_created_at <= as_of)


def default_as_of(dataset: Dataset, kind: Kind) -> int:
    """The time as of which a generation of this kind is built, in seconds.

    serving: just after the last interaction, so that every one counts. evaluation: where the test part starts; with a
    perMember split the latest such time of any member (the evaluation then encodes earlier variants itself).
    """
    if kind == "serving":
        return dataset.last_event_time + 1
    split = dataset.split
    if split.test_from is not None:
        return split.test_from
    assert split.member_test_from is not None
    starts = split.member_test_from[split.member_test_from != NO_TEST_PART]
    if not len(starts):
        raise BadInput("no member has a test part: there is no time to build an evaluation generation for")
    return int(starts.max())

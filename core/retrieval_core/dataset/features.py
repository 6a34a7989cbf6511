"""What was known about items and members at a time: the only way features enter a prompt.

Nothing at or after `as_of` is ever seen. In mode perMember, unless the view is for serving, only training-part
interactions are seen at all, in counts and in histories: members' test parts overlap in time, so one member's test part
would otherwise be another's past.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from retrieval_core.dataset.arrays import BoolArray, Int32Array, Int64Array, IntegerArray
from retrieval_core.dataset.dataset import Dataset
from retrieval_core.dataset.spec import SECONDS_PER_DAY

Features: TypeAlias = "dict[str, str | list[str] | float | list[Features] | None]"


@dataclass(frozen=True)
class ItemCounts:
    """Windowed counts before a time, int64 [n]; an engagement is an impression too."""

    engagements: Int64Array
    impressions: Int64Array


class FeatureView:
    """Features of one dataset as of any time; reading is safe from several threads.

    `for_serving`: nothing is held out; what is served may know all that happened. Training and evaluation never ask so.

    Building sorts the interactions three ways (at most 36 bytes per interaction); a count costs a binary search.
    """

    def __init__(self, dataset: Dataset, *, for_serving: bool = False) -> None:
        self._dataset = dataset
        self._window_s = dataset.spec.counts.window_s
        events = dataset.events
        holds_out = dataset.split.mode == "perMember" and not for_serving
        visible = ~events.is_test if holds_out else np.ones_like(events.is_test)
        positive = visible & events.engaged
        members, items = len(dataset.member_ids), len(dataset.item_ids)
        self._item_engagements = _Timeline(events.item, events.member, events.time, positive, items)
        self._item_impressions = _Timeline(events.item, events.member, events.time, visible, items)
        self._member_positives = _Timeline(events.member, events.item, events.time, positive, members)

    def item_features(self, item: int, as_of: int) -> Features:
        """Declared columns and `engagements`, `impressions` and, with createdAt, `ageDays`.

        `ageDays` is None for an item that did not exist yet; counts are numbers, zero when there is nothing.
        """
        features = self._item_columns_of(item)
        features["engagements"] = float(self._item_engagements.count_one(item, as_of, self._window_s))
        features["impressions"] = float(self._item_impressions.count_one(item, as_of, self._window_s))
        if self._dataset.item_created_at is not None:
            age_s = as_of - int(self._dataset.item_created_at[item])
            features["ageDays"] = age_s / SECONDS_PER_DAY if age_s >= 0 else None
        return features

    def member_features(self, member: int, as_of: int, max_history: int) -> Features:
        """Declared columns, `activity`, and `history`: the newest `max_history` positives, oldest first.

        An entry of the history holds the item's declared columns, not its counts: they would be those of another time.
        """
        features: Features = {name: values[member] for name, values in self._member_columns.items()}
        features["activity"] = float(self._member_positives.count_one(member, as_of, self._window_s))
        positives = self.positives_before(member, as_of)
        newest = positives[max(0, len(positives) - max_history) :]
        features["history"] = [self._item_columns_of(int(item)) for item in newest]
        return features

    def item_counts(self, items: IntegerArray, as_of: IntegerArray) -> ItemCounts:
        """Counts of `items` [n] strictly before `as_of` [n], within the window of `counts.windowDays`."""
        return ItemCounts(
            engagements=self._item_engagements.count(items, as_of, self._window_s),
            impressions=self._item_impressions.count(items, as_of, self._window_s),
        )

    def member_activity(self, members: IntegerArray, as_of: IntegerArray) -> Int64Array:
        """Positives of `members` [n] strictly before `as_of` [n], within the window."""
        return self._member_positives.count(members, as_of, self._window_s)

    def positives_before(self, member: int, as_of: int) -> Int32Array:
        """Items [k] the member engaged with strictly before `as_of`, oldest first, whatever the window."""
        return self._member_positives.before(member, as_of)

    def _item_columns_of(self, item: int) -> Features:
        return {name: values[item] for name, values in self._item_columns.items()}

    @cached_property
    def _item_columns(self) -> dict[str, list[Any]]:
        return {name: column.to_pylist() for name, column in self._dataset.item_columns.items()}

    @cached_property
    def _member_columns(self) -> dict[str, list[Any]]:
        return {name: column.to_pylist() for name, column in self._dataset.member_columns.items()}


class _Timeline:
    """Interactions grouped by item or by member, each group in time order, searchable for many groups at once.

    All groups share one sorted array of keys `group * span + (time - first)`, so that a count before a time is one
    vectorised binary search. Keys stay far below 2^63: 10^8 groups times 3.2e10 s (the year 3000) is 3.2e18.
    """

    def __init__(self, group: Int32Array, other: Int32Array, time: Int64Array, keep: BoolArray, groups: int) -> None:
        group, other, time = group[keep], other[keep], time[keep]
        order = np.argsort(group, kind="stable")  # events come in time order
        self._other = other[order]
        self._first = int(time[0]) if len(time) else 0
        self._span = (int(time[-1]) - self._first + 2) if len(time) else 1
        self._keys = group[order].astype(np.int64) * self._span + (time[order] - self._first)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))]).astype(np.int64)

    def count(self, groups: IntegerArray, as_of: IntegerArray, window_s: int) -> Int64Array:
        """Interactions of each of `groups` [n] in [as_of - window, as_of); a window of 0 is unlimited."""
        ends = self._positions(groups, as_of)
        starts = self._positions(groups, as_of - window_s) if window_s else self._starts[groups]
        return ends - starts

    def count_one(self, group: int, as_of: int, window_s: int) -> int:
        """`count` for one group, without the cost of arrays of one element."""
        start = self._position(group, as_of - window_s) if window_s else int(self._starts[group])
        return self._position(group, as_of) - start

    def before(self, group: int, as_of: int) -> Int32Array:
        """The other side's indices of one group's interactions before `as_of`, oldest first."""
        return self._other[int(self._starts[group]) : self._position(group, as_of)]

    def _positions(self, groups: IntegerArray, time: IntegerArray) -> Int64Array:
        """Index of each group's first interaction at or after `time`."""
        offset = np.clip(time.astype(np.int64) - self._first, 0, self._span - 1)
        found = np.searchsorted(self._keys, groups.astype(np.int64) * self._span + offset, side="left")
        return found.astype(np.int64)

    def _position(self, group: int, time: int) -> int:
        offset = min(max(time - self._first, 0), self._span - 1)
        return int(self._keys.searchsorted(group * self._span + offset, side="left"))

"""What a training may learn from: the training part of the events, as arrays.

One example is one engagement (member, item, time). Its prompts are rendered as of that time (prompting.py). Validation
members' training events train like anybody's; nothing of the test part is ever in these arrays.

Legend: E examples, I items, M members, X impressions that never led to an engagement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_core.dataset import Dataset
from retrieval_core.errors import BadInput


@dataclass(frozen=True)
class TrainingExamples:
    """Training positives, and per member the items it was shown and never engaged with.

    member, item int32[E] and time int64[E] (seconds) are the positives. impressed_item int32[X] and impressed_time
    int64[X] are ordered by (member, time); those of member m are the rows impressed_from[m]:impressed_from[m + 1].
    engaged_keys int64 are the sorted distinct member * I + item of all training engagements.
    """

    member: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    impressed_item: NDArray[np.int32]
    impressed_time: NDArray[np.int64]
    impressed_from: NDArray[np.int64]
    engaged_keys: NDArray[np.int64]
    item_created_at: NDArray[np.int64] | None
    item_count: int

    def __len__(self) -> int:
        return len(self.item)

    def has_engaged(self, members: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each member engaged with each item in the training part; arguments broadcast."""
        keys = members.astype(np.int64) * self.item_count + items
        places = np.searchsorted(self.engaged_keys, keys)
        return np.asarray(self.engaged_keys[np.minimum(places, len(self.engaged_keys) - 1)] == keys)

    def exists(self, items: NDArray[np.int32], times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each item had been created by then; True without creation times. Arguments broadcast."""
        if self.item_created_at is None:
            return np.ones(np.broadcast(items, times).shape, dtype=bool)
        return np.asarray(self.item_created_at[items] <= times)


def training_examples(dataset: Dataset) -> TrainingExamples:
    """Collect the examples of a dataset. BadInput when there are too few to contrast (fewer than two items)."""
    events, item_count = dataset.events, len(dataset.item_ids)
    train = ~events.is_test
    positive = train & events.engaged
    member, item = events.member[positive], events.item[positive]
    if len(np.unique(item)) < 2:
        raise BadInput(
            f"the training part has {len(item)} engagements with {len(np.unique(item))} different items, expected at "
            "least two items: check `engaged` in interactions/ and the split in dataset.yaml"
        )
    engaged_keys = np.unique(member.astype(np.int64) * item_count + item)
    shown = train & ~events.engaged
    shown &= ~np.isin(events.member.astype(np.int64) * item_count + events.item, engaged_keys)
    order = np.argsort(events.member[shown], kind="stable")  # events are ordered by time already
    shown_by = events.member[shown][order]
    return TrainingExamples(
        member=member,
        item=item,
        time=events.time[positive],
        impressed_item=events.item[shown][order],
        impressed_time=events.time[shown][order],
        impressed_from=np.searchsorted(shown_by, np.arange(len(dataset.member_ids) + 1)),
        engaged_keys=engaged_keys,
        item_created_at=dataset.item_created_at,
        item_count=item_count,
    )

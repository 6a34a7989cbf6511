"""What a person wants to know of a dataset before trusting numbers made from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_core.dataset.dataset import Dataset


@dataclass(frozen=True)
class Summary:
    """Counts of one dataset. Shares are fractions, times are seconds."""

    name: str
    provenance: str
    snapshot: str
    members: int
    items: int
    interactions: int
    engaged_share: float
    first_time: int
    last_time: int
    split_mode: str
    training: int
    training_positives: int
    test: int
    test_positives: int
    members_evaluable: int  # for gates: the validation members are left out
    members_for_tuning: int
    test_positives_on_untrained_items: float  # share on items without a training positive


def summarise(dataset: Dataset) -> Summary:
    """Counts over the whole dataset; cheap next to opening it."""
    events = dataset.events
    positive_training = events.engaged & ~events.is_test
    positive_test = events.engaged & events.is_test
    has_test = np.zeros(len(dataset.member_ids), dtype=np.bool_)
    has_test[events.member[positive_test]] = True
    if dataset.split.mode == "perMember":  # without a positive in training such a member has no history
        has_training = np.zeros_like(has_test)
        has_training[events.member[positive_training]] = True
        has_test &= has_training
    trained = np.zeros(len(dataset.item_ids), dtype=np.bool_)
    trained[events.item[positive_training]] = True
    return Summary(
        name=dataset.spec.name,
        provenance=dataset.spec.provenance,
        snapshot=dataset.snapshot,
        members=len(dataset.member_ids),
        items=len(dataset.item_ids),
        interactions=len(events),
        engaged_share=float(events.engaged.mean()),
        first_time=int(events.time[0]),
        last_time=dataset.last_event_time,
        split_mode=dataset.split.mode,
        training=int((~events.is_test).sum()),
        training_positives=int(positive_training.sum()),
        test=int(events.is_test.sum()),
        test_positives=int(positive_test.sum()),
        members_evaluable=int((has_test & ~dataset.is_validation_member).sum()),
        members_for_tuning=int((has_test & dataset.is_validation_member).sum()),
        test_positives_on_untrained_items=float(1 - trained[events.item[positive_test]].mean()),
    )

"""The look at recall during training: validation members only, known numbers for planted scores."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_trainer.examples import training_examples
from retrieval_trainer.validation import (
    NEGATIVES,
    ValidationSet,
    popularity_recall_at_10,
    recall_at_10,
    validation_set,
)


@pytest.fixture
def chosen(dataset: Dataset) -> ValidationSet:
    """Every member serves for validation here: the feed is small."""
    everybody = np.ones(len(dataset.member_ids), dtype=bool)
    dataset = type(dataset)(**{**vars(dataset), "is_validation_member": everybody})
    return validation_set(dataset, FeatureView(dataset), training_examples(dataset))


def test_only_validation_members_with_a_test_positive_are_asked(dataset: Dataset) -> None:
    events = dataset.events
    chosen = validation_set(dataset, FeatureView(dataset), training_examples(dataset))
    for member, item in zip(chosen.member, chosen.item, strict=True):
        assert dataset.is_validation_member[member]
        assert events.is_test[(events.member == member) & (events.item == item) & events.engaged].any()


def test_negatives_were_never_engaged_with_and_exist_at_the_time(chosen: ValidationSet, dataset: Dataset) -> None:
    events = dataset.events
    pairs = set(zip(events.member[events.engaged].tolist(), events.item[events.engaged].tolist(), strict=True))
    assert len(chosen) > 20
    assert dataset.item_created_at is not None
    for pool in chosen.pools.values():
        assert pool.shape == (len(chosen), NEGATIVES)
        assert (dataset.item_created_at[pool] <= chosen.item_time).all()
        for member, row in zip(chosen.member.tolist(), pool.tolist(), strict=True):
            assert not any((member, item) in pairs for item in row)


def planted(chosen: ValidationSet, score: float) -> dict[str, float]:
    """Recall when every member's cosine with its own positive is `score` and with all other items 0.5."""
    width = len(chosen) + 1

    def members(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.eye(width, dtype=np.float32)[: len(rows)] * score + np.eye(width, dtype=np.float32)[-1] * 0.5

    def items(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        vectors = np.zeros((len(rows), width), dtype=np.float32)
        vectors[:, -1] = 1e-6
        for row, item in enumerate(rows):
            vectors[row, :-1] = chosen.item == item
        return vectors

    return recall_at_10(chosen, members, items)


def test_a_perfect_ranking_has_recall_one(chosen: ValidationSet) -> None:
    assert planted(chosen, 1.0) == {"recall_uniform": 1.0, "recall_popular": 1.0}


def test_an_encoder_that_cannot_tell_items_apart_has_recall_zero_not_one(chosen: ValidationSet) -> None:
    """All cosines are equal: half the negatives count as before the positive."""

    def same(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.ones((len(rows), 4), dtype=np.float32)

    assert recall_at_10(chosen, same, same) == {"recall_uniform": 0.0, "recall_popular": 0.0}


def test_popularity_is_counted_at_the_items_time(chosen: ValidationSet, dataset: Dataset) -> None:
    recalls = popularity_recall_at_10(chosen)
    hits = 0
    for positive, negatives in zip(chosen.item, chosen.pools["uniform"], strict=True):
        own, others = chosen.popularity[positive], chosen.popularity[negatives]
        hits += (others > own).sum() + (others == own).sum() / 2 < 10
    assert recalls["recall_uniform"] == pytest.approx(hits / len(chosen))

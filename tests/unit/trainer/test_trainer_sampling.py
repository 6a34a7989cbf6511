"""Batches are a function of (seed, position), and hard negatives are what the member was shown and left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_trainer.examples import TrainingExamples
from retrieval_trainer.sampling import WINDOW, BatchSampler, impression_window


def sampler_of(examples: TrainingExamples, hard_negatives: int = 2, seed: int = 0) -> BatchSampler:
    return BatchSampler(examples, hard_negatives=hard_negatives, seed=seed)


def test_an_epoch_has_every_example_once_and_epochs_differ(feed: TrainingExamples) -> None:
    sampler, count = sampler_of(feed), len(feed)
    keys = [feed.member.astype(np.int64) * 10**6 + feed.time]
    first, second = sampler.batch(0, count), sampler.batch(count, count)
    for batch in (first, second):
        np.testing.assert_array_equal(np.sort(batch.member.astype(np.int64) * 10**6 + batch.time), np.sort(keys[0]))
    assert not np.array_equal(first.item, second.item)


def test_a_batch_across_two_epochs_continues_with_the_next_permutation(feed: TrainingExamples) -> None:
    sampler, count = sampler_of(feed), len(feed)
    across = sampler.batch(count - 3, 8)
    np.testing.assert_array_equal(across.item[:3], sampler.batch(0, count).item[-3:])
    np.testing.assert_array_equal(across.item[3:], sampler.batch(count, count).item[:5])


def test_a_new_sampler_continues_at_any_position(feed: TrainingExamples) -> None:
    """What makes resuming exact: no state but the position."""
    running = sampler_of(feed)
    batches = [running.batch(position, 16) for position in range(0, 160, 16)]
    resumed = sampler_of(feed).batch(112, 16)
    for name in ("member", "item", "time", "hard"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(batches[7], name))


def test_another_seed_is_another_order(feed: TrainingExamples) -> None:
    assert not np.array_equal(sampler_of(feed, seed=0).batch(0, 64).item, sampler_of(feed, seed=1).batch(0, 64).item)


def test_hard_negatives_were_shown_to_the_member_and_never_engaged_with(feed: TrainingExamples) -> None:
    batch = sampler_of(feed).batch(0, len(feed))
    assert (batch.hard >= 0).all(), "every page of this feed has enough of them"
    for member, hard in zip(batch.member.tolist(), batch.hard.tolist(), strict=True):
        shown = feed.impressed_item[feed.impressed_from[member] : feed.impressed_from[member + 1]]
        assert set(hard) <= set(shown.tolist())
    assert not feed.has_engaged(batch.member[:, None], batch.hard).any()


def test_hard_negatives_come_from_the_impressions_nearest_in_time(
    examples_of: Callable[..., TrainingExamples],
) -> None:
    events = [(0, item, item, False) for item in range(100)] + [(0, 150, 70, True), (0, 151, 2, True)]
    examples = examples_of(events, items=200)
    window = impression_window(examples, np.array([0, 1]))
    assert examples.time.tolist() == [2, 70]
    assert list(window.start) == [0, 70 - WINDOW // 2]
    assert list(window.size) == [WINDOW, WINDOW]


def test_an_item_that_did_not_exist_yet_is_no_hard_negative(examples_of: Callable[..., TrainingExamples]) -> None:
    created_at = [0, 0, 0, 500]
    events = [(0, 0, 100, True), (0, 1, 100, False), (0, 3, 600, False), (1, 2, 50, True)]
    examples = examples_of(events, items=4, created_at=created_at)
    for position in range(0, 40, 2):
        batch = sampler_of(examples).batch(position, 2)
        assert not (batch.hard == 3).any(), "item 3 was created after both examples"


def test_popular_items_fill_up_what_is_missing_and_never_an_engaged_one(
    examples_of: Callable[..., TrainingExamples],
) -> None:
    """Member 0 was shown one item it left; member 1 none."""
    events = [(0, 0, 10, True), (0, 1, 10, False), (1, 2, 10, True), (2, 3, 10, True), (2, 2, 11, True)]
    examples = examples_of(events, items=10)
    batch = sampler_of(examples).batch(0, len(examples))
    hard = dict(zip(zip(batch.member.tolist(), batch.item.tolist(), strict=True), batch.hard.tolist(), strict=True))
    assert hard[0, 0][0] == 1, "what was shown comes first"
    assert hard[0, 0][1] in {2, 3}
    assert set(hard[1, 2]) <= {0, 3}, "draws of the positives' own frequencies"
    assert not examples.has_engaged(batch.member[:, None], np.maximum(batch.hard, 0))[batch.hard >= 0].any()


def test_what_cannot_be_filled_is_missing(examples_of: Callable[..., TrainingExamples]) -> None:
    """Everybody engaged with everything: there is no negative."""
    events = [(member, item, 10, True) for member in range(2) for item in range(3)]
    batch = sampler_of(examples_of(events, items=3)).batch(0, 6)
    assert (batch.hard == -1).all()


def test_no_hard_negatives_gives_no_columns(feed: TrainingExamples) -> None:
    assert sampler_of(feed, hard_negatives=0).batch(0, 5).hard.shape == (5, 0)


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 2000), size=st.integers(1, 64), split=st.integers(1, 3))
def test_ranks_partition_the_global_batch(position: int, size: int, split: int) -> None:
    random = np.random.default_rng(0)
    count = 50
    examples = TrainingExamples(
        member=np.arange(count, dtype=np.int32),
        item=random.integers(0, 20, count).astype(np.int32),
        time=np.arange(count, dtype=np.int64),
        impressed_item=np.empty(0, dtype=np.int32),
        impressed_time=np.empty(0, dtype=np.int64),
        impressed_from=np.zeros(count + 1, dtype=np.int64),
        engaged_keys=np.arange(count, dtype=np.int64) * 20,
        item_created_at=None,
        item_count=20,
    )
    whole = sampler_of(examples).batch(position, size * split)
    parts = [sampler_of(examples).batch(position, size * split).rows(r * size, (r + 1) * size) for r in range(split)]
    for name in ("member", "item", "time", "hard"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_the_number_of_hard_negatives_is_the_one_asked_for(feed: TrainingExamples, wanted: int) -> None:
    assert sampler_of(feed, hard_negatives=wanted).batch(0, 7).hard.shape == (7, wanted)

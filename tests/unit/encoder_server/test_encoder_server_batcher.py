"""The queue in front of a worker: admission, packing, failures, health.

Most cases call the worker's step themselves, with a clock that stands; two start the thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_encoder_server.batcher import Batcher, Entry, take_batch
from retrieval_encoder_server.refusals import Overloaded, TooLarge, Unavailable


@pytest.fixture
def batches() -> list[list[str]]:
    """What the worker was given, batch by batch."""
    return []


@pytest.fixture
def batcher(batches, clock) -> Batcher[str, str]:
    """Answers in upper case; a batch with "poison" in it fails, and one second passes per batch."""

    def process(payloads: Sequence[str]) -> list[str]:
        batches.append(list(payloads))
        clock.now += 1
        if "poison" in payloads:
            raise ValueError("poison")
        return [payload.upper() for payload in payloads]

    return Batcher("encode", process, unit="tokens", max_batch_cost=10, max_queue_cost=20, clock=clock)


def test_what_waits_is_processed_as_one_batch(batcher, batches):
    futures = [batcher.submit(text, 2) for text in ("a", "b", "c")]
    assert batcher.run_once()
    assert [future.result(0) for future in futures] == ["A", "B", "C"]
    assert batches == [["a", "b", "c"]]


def test_nothing_waits_nothing_is_done(batcher, batches):
    assert not batcher.run_once()
    assert batches == []


def test_a_batch_ends_where_the_next_entry_would_exceed_the_budget_even_if_a_later_one_fits(batcher, batches):
    for text, cost in (("a", 6), ("b", 6), ("c", 2)):
        batcher.submit(text, cost)
    while batcher.run_once():
        pass
    assert batches == [["a"], ["b", "c"]], "oldest first: nobody is overtaken"


def test_an_entry_above_the_batch_budget_runs_alone(batcher, batches):
    batcher.submit("large", 15)
    batcher.submit("small", 1)
    while batcher.run_once():
        pass
    assert batches == [["large"], ["small"]]


def test_a_full_queue_refuses_and_says_when_to_come_back(batcher):
    batcher.submit("a", 10)
    batcher.run_once()  # 10 units in one second
    batcher.submit("b", 20)
    with pytest.raises(Overloaded, match="20 of at most 20 tokens wait already, the request has 1") as refused:
        batcher.submit("c", 1)
    assert refused.value.retry_after_s == 2


def test_a_full_queue_without_any_measurement_says_one_second(batcher):
    batcher.submit("a", 20)
    with pytest.raises(Overloaded) as refused:
        batcher.submit("b", 1)
    assert refused.value.retry_after_s == 1


def test_what_is_being_processed_no_longer_waits(batcher):
    batcher.submit("a", 20)
    batcher.run_once()
    batcher.submit("b", 20)


def test_an_entry_that_can_never_be_admitted_is_too_large_not_overloaded(batcher):
    with pytest.raises(TooLarge, match=r"has 21 tokens, .* at most 20"):
        batcher.submit("huge", 21)


def test_an_entry_whose_caller_has_gone_is_dropped_and_makes_room(batcher, batches):
    gone = batcher.submit("gone", 10)
    batcher.submit("stays", 10)
    gone.cancel()
    while batcher.run_once():
        pass
    assert batches == [["stays"]]
    batcher.submit("next", 20)


def test_a_poisoned_entry_fails_alone(batcher, batches):
    before, poison, after = (batcher.submit(text, 1) for text in ("before", "poison", "after"))
    batcher.run_once()
    assert (before.result(0), after.result(0)) == ("BEFORE", "AFTER")
    with pytest.raises(ValueError, match="poison"):
        poison.result(0)
    assert batches == [["before", "poison", "after"], ["before"], ["poison"], ["after"]]


def test_a_worker_that_returns_too_few_results_fails_the_batch_instead_of_mixing_answers(clock):
    batcher = Batcher(
        "encode", lambda payloads: payloads[:-1], unit="tokens", max_batch_cost=10, max_queue_cost=10, clock=clock
    )
    futures = [batcher.submit(text, 1) for text in ("a", "b")]
    batcher.run_once()
    for future in futures:
        with pytest.raises(RuntimeError, match="1 entries went in, 0 results came out"):
            future.result(0)


def test_a_stopping_batcher_refuses_new_entries(batcher):
    batcher.stop()
    with pytest.raises(Unavailable):
        batcher.submit("late", 1)


def test_stopping_finishes_what_waits(batcher):
    futures = [batcher.submit(text, 1) for text in ("a", "b")]
    batcher.start()
    batcher.stop()
    assert [future.result(0) for future in futures] == ["A", "B"]


def test_a_worker_is_dead_before_it_starts_and_after_it_stopped(batcher):
    assert not batcher.is_alive(stuck_after_s=60)
    batcher.start()
    assert batcher.is_alive(stuck_after_s=60)
    batcher.stop()
    assert not batcher.is_alive(stuck_after_s=60)


def test_a_worker_stuck_in_a_batch_is_not_alive_beyond_the_bound(clock):
    entered, release = threading.Event(), threading.Event()

    def hang(payloads: Sequence[str]) -> Sequence[str]:
        entered.set()
        assert release.wait(10)
        return payloads

    batcher = Batcher("encode", hang, unit="tokens", max_batch_cost=10, max_queue_cost=10, clock=clock)
    batcher.start()
    batcher.submit("a", 1)
    assert entered.wait(10)
    clock.now += 60
    assert batcher.is_alive(stuck_after_s=60)
    clock.now += 1
    assert not batcher.is_alive(stuck_after_s=60)
    release.set()
    batcher.stop()


def test_recent_success_counts_and_failure_does_not(batcher, clock):
    assert not batcher.succeeded_within(10)
    batcher.submit("poison", 1)
    batcher.run_once()
    assert not batcher.succeeded_within(10)
    batcher.submit("fine", 1)
    batcher.run_once()
    assert batcher.succeeded_within(10)
    clock.now += 10.1
    assert not batcher.succeeded_within(10)


@settings(max_examples=50, deadline=None)
@given(costs=st.lists(st.integers(0, 12), max_size=20), budget=st.integers(1, 10))
def test_packing_keeps_order_loses_nothing_and_exceeds_the_budget_only_for_a_single_entry(costs, budget):
    queue = deque(Entry(number, cost, 0.0) for number, cost in enumerate(costs))
    taken = []
    while queue:
        batch = take_batch(queue, budget)
        assert batch
        assert len(batch) == 1 or sum(entry.cost for entry in batch) <= budget
        taken += [entry.payload for entry in batch]
    assert taken == list(range(len(costs)))

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_operator.work_queue import Backoff, QueueStopped, WorkQueue


def test_a_key_added_twice_is_handed_out_once(in_virtual_time) -> None:
    async def story() -> list[str]:
        queue = WorkQueue()
        for key in ("a", "b", "a"):
            queue.add(key)
        return [await queue.get(), await queue.get(), *await _rest(queue)]

    assert in_virtual_time(story()) == ["a", "b"]


def test_a_key_added_while_it_is_processed_waits_for_its_worker(in_virtual_time) -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        assert await _rest(queue) == []
        queue.done("a")
        assert await _rest(queue) == ["a"]

    in_virtual_time(story())


def test_of_two_delays_the_earlier_counts_and_a_pass_ends_the_timer(in_virtual_time) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        queue = WorkQueue()
        queue.add_after("a", 60)
        queue.add_after("a", 10)
        queue.add_after("a", 30)
        assert await queue.get() == "a"
        assert loop.time() == pytest.approx(10)
        queue.add_after("a", 5)  # asked for by the pass under way, so not ended by its own hand-out
        queue.done("a")
        assert await queue.get() == "a"
        assert loop.time() == pytest.approx(15)
        queue.done("a")
        assert await _rest(queue) == []  # the timers for 30 and 60 are gone

    in_virtual_time(story())


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_delay_means_now(in_virtual_time, seconds: float) -> None:
    async def story() -> str:
        queue = WorkQueue()
        queue.add_after("a", seconds)
        return await queue.get()

    assert in_virtual_time(story()) == "a"


def test_back_off_doubles_up_to_its_bound_and_starts_again_after_forget(in_virtual_time) -> None:
    async def story() -> None:
        queue = WorkQueue(backoff=Backoff(first_s=1, most_s=8, jitter=0))
        assert [queue.add_backed_off("a") for _ in range(5)] == [1, 2, 4, 8, 8]
        assert queue.failures("a") == 5
        assert queue.add_backed_off("b") == 1, "back-off is per key"
        queue.forget("a")
        assert queue.failures("a") == 0
        assert queue.add_backed_off("a") == 1

    in_virtual_time(story())


@given(failures=st.integers(1, 10_000), uniform=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_positive_bounded_and_jittered_downwards(failures: int, uniform: float) -> None:
    backoff = Backoff()
    delay, unjittered = backoff.delay_s(failures, uniform), backoff.delay_s(failures, 0.0)
    assert 0 < delay <= unjittered <= backoff.most_s
    assert delay >= unjittered * (1 - backoff.jitter)


def test_stop_wakes_every_worker_and_hands_out_nothing_more(in_virtual_time) -> None:
    async def story() -> None:
        queue = WorkQueue()
        workers = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add_after("later", 5)
        queue.stop()
        queue.add("a")
        queue.add_after("b", 1)
        outcomes = await asyncio.gather(*workers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [QueueStopped] * 3
        with pytest.raises(QueueStopped):
            await queue.get()

    in_virtual_time(story())


def test_it_is_known_how_long_the_longest_pass_takes(in_virtual_time) -> None:
    async def story() -> None:
        queue = WorkQueue()
        assert queue.longest_processing_s() == 0
        queue.add("a")
        queue.add("b")
        await queue.get()
        await asyncio.sleep(30)
        await queue.get()
        await asyncio.sleep(5)
        assert queue.longest_processing_s() == 35
        queue.done("a")
        assert queue.longest_processing_s() == 5
        queue.done("b")
        assert queue.longest_processing_s() == 0

    in_virtual_time(story())


def test_a_pass_under_way_ends_normally_after_stop(in_virtual_time) -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add("a")
        key = await queue.get()
        queue.add(key)
        queue.stop()
        queue.done(key)
        with pytest.raises(QueueStopped):
            await queue.get()

    in_virtual_time(story())


@dataclass(frozen=True)
class Addition:
    pause: float
    kind: str  # now, after or backed off
    key: str
    seconds: float


additions = st.lists(
    st.builds(
        Addition,
        pause=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
        kind=st.sampled_from(["now", "after", "backed off"]),
        key=st.sampled_from("abc"),
        seconds=st.sampled_from([0.5, 2.0, 10.0]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(additions=additions, workers=st.integers(1, 4), work=st.sampled_from([0.0, 0.7, 4.0]))
def test_every_addition_is_followed_by_a_pass_and_no_key_has_two_workers(
    in_virtual_time, additions: list[Addition], workers: int, work: float
) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        queue = WorkQueue(rng=random.Random(0))
        busy: set[str] = set()
        began: dict[str, list[tuple[int, float]]] = defaultdict(list)  # key -> (additions so far, time) of each pass
        due: list[tuple[int, str, float]] = []  # (number of the addition, key, when it is due)

        async def worker() -> None:
            while True:
                key = await queue.get()
                assert key not in busy
                busy.add(key)
                began[key].append((len(due), loop.time()))
                await asyncio.sleep(work)
                busy.remove(key)
                queue.done(key)

        crew = [asyncio.create_task(worker()) for _ in range(workers)]
        for addition in additions:
            await asyncio.sleep(addition.pause)
            seconds = 0.0
            if addition.kind == "now":
                queue.add(addition.key)
            elif addition.kind == "after":
                queue.add_after(addition.key, seconds := addition.seconds)
            else:
                seconds = queue.add_backed_off(addition.key)
            due.append((len(due), addition.key, loop.time() + seconds))
        await asyncio.sleep(10_000)
        queue.stop()
        outcomes = await asyncio.gather(*crew, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {QueueStopped}

        longest_wait = work * (len(due) + 1)  # at worst every pass goes first, through one worker
        for number, key, due_at in due:
            later = [at for seen, at in began[key] if seen > number]
            assert later, f"addition {number} of {key} was never followed by a pass"
            assert later[0] <= due_at + longest_wait + 1e-6
        for key, passes in began.items():
            assert len(passes) <= sum(added == key for _, added, _ in due), "passes out of nowhere"

    in_virtual_time(story())


async def _rest(queue: WorkQueue) -> list[str]:
    """The keys that are due within an hour, marked as done."""
    keys = []
    while True:
        try:
            keys.append(await asyncio.wait_for(queue.get(), 3600))
        except TimeoutError:
            return keys
        queue.done(keys[-1])

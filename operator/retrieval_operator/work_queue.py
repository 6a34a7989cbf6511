"""A de-duplicating queue of object keys with delays and per-key back-off: client-go's work queue, for asyncio.

A key is due (it waits for a worker), being processed (one worker has it) or delayed (a timer runs). Added while it is
processed, it becomes due again when the worker is done with it: no change is missed and no key is with two workers at
once. Handing a key out ends its timer: the pass that starts now sees everything the timer was for, and says itself when
to look again.

Time is the event loop's: tests drive a loop whose clock they own.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass


class QueueStopped(Exception):
    """The queue was stopped; a worker that receives this is finished."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Exponential, with jitter so that objects which failed together do not return together.

    The bounds are a gut feeling: a first retry people hardly notice, and a last one soon enough after MLflow is back.
    """

    first_s: float = 1.0
    most_s: float = 120.0
    jitter: float = 0.25  # up to this share is taken off

    def delay_s(self, failures: int, uniform: float) -> float:
        """Seconds to wait after the `failures`-th failure in a row (from 1); `uniform` is drawn from [0, 1)."""
        exponent = min(failures - 1, 32)  # 2**32 s is beyond any bound; more would only overflow
        return min(self.most_s, self.first_s * 2.0**exponent) * (1 - self.jitter * uniform)


class WorkQueue:
    """Use from one event loop only. `get` and `done` come in pairs, one pair per key and pass."""

    def __init__(self, *, backoff: Backoff | None = None, rng: random.Random | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()
        self._due: asyncio.Queue[str | None] = asyncio.Queue()  # None: stopped
        self._waiting: set[str] = set()  # keys that are due, or become so when their worker is done
        self._processing: dict[str, float] = {}  # since when, by the loop's clock
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._stopped = False

    def add(self, key: str) -> None:
        """Make the key due now. A key that is due already, or a stopped queue, is left as it is."""
        if self._stopped or key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._processing:
            self._due.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Make the key due in so many seconds. Of two delays of one key the earlier counts."""
        if seconds <= 0:
            self.add(key)
            return
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        due_at = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due_at:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due_at, self._ring, key)

    def add_backed_off(self, key: str) -> float:
        """Make the key due after its back-off, which doubles until `forget`. Returns the seconds until then."""
        self._failures[key] = self._failures.get(key, 0) + 1
        seconds = self._backoff.delay_s(self._failures[key], self._rng.random())
        self.add_after(key, seconds)
        return seconds

    def failures(self, key: str) -> int:
        """How often in a row the key was backed off; 0 after `forget`."""
        return self._failures.get(key, 0)

    def forget(self, key: str) -> None:
        """The key succeeded (or is no more): its next back-off starts from the beginning."""
        self._failures.pop(key, None)

    async def get(self) -> str:
        """The next due key, first come first served. Raises QueueStopped once the queue is stopped."""
        key = await self._due.get()
        if self._stopped or key is None:
            self._due.put_nowait(None)  # for the next worker that waits
            raise QueueStopped
        self._waiting.discard(key)
        self._processing[key] = asyncio.get_running_loop().time()
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: str) -> None:
        """The worker is finished with the key; it is due again if it was added meanwhile."""
        del self._processing[key]
        if key in self._waiting:
            self._due.put_nowait(key)

    def longest_processing_s(self) -> float:
        """For how many seconds the key that is longest with its worker has been there; 0 when none is."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._processing.values()), default=0.0)

    def stop(self) -> None:
        """Hand out no more keys and wake every waiting worker. Passes under way end by themselves."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._due.put_nowait(None)

    def _ring(self, key: str) -> None:
        del self._timers[key]
        self.add(key)

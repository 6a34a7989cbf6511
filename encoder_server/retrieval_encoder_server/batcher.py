"""A bounded queue in front of one worker thread. No HTTP, no torch.

1. `submit` admits an entry if its cost fits beside what already waits, else refuses it at once (429, Retry-After).
2. The worker takes what waits, oldest first, up to the batch budget: there is no window to wait for a fuller batch,
   the batches fill by themselves under load.
3. It processes the batch in one call and gives each entry its result. Entries whose caller has gone are dropped first.

The `unit` of cost is the caller's: tokens for encoding, queries for searching. An entry is never split, so one that
costs more than the batch budget runs alone. `take_batch` is the packing policy and the place to change it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from retrieval_core.log import get_logger
from retrieval_encoder_server.refusals import Overloaded, TooLarge, Unavailable

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Clock = Callable[[], float]

# How often an idle worker shows that it is alive; well below any sensible bound for a stuck one.
HEARTBEAT_S = 1.0
# Weight of the newest batch in the throughput estimate behind Retry-After: smooth, but follows a change of load within
# about ten batches. A gut feeling.
THROUGHPUT_SMOOTHING = 0.2
# Retry-After before anything was measured, and its bounds: a client told to wait for minutes would not come back.
DEFAULT_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 30

log = get_logger(__name__)


@dataclass
class Entry(Generic[Payload, Result]):
    payload: Payload
    cost: int
    enqueued_at: float
    future: Future[Result] = field(default_factory=Future)


class Observer(Protocol):
    """Told about each decision where it falls; see `metrics.py`."""

    def queued(self, cost: int) -> None:
        """The cost that waits after an entry came or went."""

    def processed(self, *, entries: int, cost: int, waited_s: Sequence[float], took_s: float) -> None:
        """One batch succeeded."""


class Batcher(Generic[Payload, Result]):
    """Owns the queue and the thread. `process` gets the payloads of one batch and returns one result for each."""

    def __init__(
        self,
        name: str,
        process: Callable[[Sequence[Payload]], Sequence[Result]],
        *,
        unit: str,
        max_batch_cost: int,
        max_queue_cost: int,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._name = name
        self._unit = unit
        self._max_queue_cost = max_queue_cost
        self._process = process
        self._max_batch_cost = max_batch_cost
        self._observer = observer
        self._clock = clock
        self._queue: deque[Entry[Payload, Result]] = deque()
        self._queued_cost = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._cost_per_s: float | None = None
        self._beat_at = clock()
        self._succeeded_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._beat_at = self._clock()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish what waits, then end the thread; new entries are refused from now on."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(self, payload: Payload, cost: int) -> Future[Result]:
        """Admit one entry; the future holds its result, or the exception its batch died of.

        Raises TooLarge if it could never be admitted, Overloaded if it cannot be now, Unavailable while stopping.
        """
        if cost > self._max_queue_cost:
            raise TooLarge(
                f"the request has {cost} {self._unit}, this server takes at most {self._max_queue_cost} at once"
            )
        with self._changed:
            if self._stopping:
                raise Unavailable("the server is stopping", retry_after_s=DEFAULT_RETRY_AFTER_S)
            if self._queued_cost + cost > self._max_queue_cost:
                raise Overloaded(
                    f"{self._queued_cost} of at most {self._max_queue_cost} {self._unit} wait already, "
                    f"the request has {cost}; try again later",
                    retry_after_s=self._retry_after_s(),
                )
            entry: Entry[Payload, Result] = Entry(payload, cost, self._clock())
            self._queue.append(entry)
            self._change_queued_cost(cost)
            self._changed.notify()
            return entry.future

    def run_once(self) -> bool:
        """Process one batch in the calling thread; False when nothing waits. The worker's step, and the tests'."""
        with self._changed:
            batch = take_batch(self._queue, self._max_batch_cost)
            self._change_queued_cost(-sum(entry.cost for entry in batch))
        running = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
        if running:
            self._process_batch(running)
        return bool(batch)

    def is_alive(self, stuck_after_s: float) -> bool:
        """True while the thread runs and has finished a step within `stuck_after_s` seconds."""
        return self._thread.is_alive() and self._clock() - self._beat_at <= stuck_after_s

    def succeeded_within(self, seconds: float) -> bool:
        """True if a batch succeeded within the last `seconds`: the worker needs no probe."""
        return self._succeeded_at is not None and self._clock() - self._succeeded_at <= seconds

    def _run(self) -> None:
        while True:
            self._beat_at = self._clock()
            if self.run_once():
                continue
            with self._changed:
                if self._stopping and not self._queue:
                    return
                if not self._queue:
                    self._changed.wait(HEARTBEAT_S)

    def _process_batch(self, batch: list[Entry[Payload, Result]]) -> None:
        started_at = self._clock()
        try:
            results = self._process([entry.payload for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name}: {len(batch)} entries went in, {len(results)} results came out")
        except Exception as error:  # whatever it is, its callers must hear of it and the thread must live
            self._fail(batch, error)
            return
        self._succeeded_at = self._clock()
        self._record(batch, started_at)
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)

    def _fail(self, batch: list[Entry[Payload, Result]], error: Exception) -> None:
        """One caller's entry must not fail its neighbours: a failed batch is tried again entry by entry."""
        if len(batch) == 1:
            batch[0].future.set_exception(error)
        with contextlib.suppress(OSError, ValueError):  # a closed log must not end the only thread that computes
            log.error("batch failed", worker=self._name, entries=len(batch), exc_info=error)
        if len(batch) > 1:
            for entry in batch:
                self._process_batch([entry])

    def _record(self, batch: list[Entry[Payload, Result]], started_at: float) -> None:
        cost = sum(entry.cost for entry in batch)
        took_s = self._clock() - started_at
        if took_s > 0 and cost > 0:
            rate = cost / took_s
            previous = self._cost_per_s if self._cost_per_s is not None else rate
            self._cost_per_s = previous + THROUGHPUT_SMOOTHING * (rate - previous)
        if self._observer is not None:
            waited_s = [started_at - entry.enqueued_at for entry in batch]
            self._observer.processed(entries=len(batch), cost=cost, waited_s=waited_s, took_s=took_s)

    def _change_queued_cost(self, change: int) -> None:
        self._queued_cost += change
        if change and self._observer is not None:
            self._observer.queued(self._queued_cost)

    def _retry_after_s(self) -> int:
        """Whole seconds until what waits now will have been processed, at the measured rate."""
        if self._cost_per_s is None:
            return DEFAULT_RETRY_AFTER_S
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(self._queued_cost / self._cost_per_s)))


def take_batch(queue: deque[Entry[Payload, Result]], budget: int) -> list[Entry[Payload, Result]]:
    """Take entries from the front while they fit the budget; at least one if any waits, however large."""
    batch: list[Entry[Payload, Result]] = []
    cost = 0
    while queue and (not batch or cost + queue[0].cost <= budget):
        entry = queue.popleft()
        batch.append(entry)
        cost += entry.cost
    return batch

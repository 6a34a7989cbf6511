"""Prepare the next steps' inputs in a thread while the current step computes (torch releases the GIL)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

# Batches ready ahead. One would do for even batches; two absorb a slow one. Each is a few hundred kilobytes.
AHEAD = 2


def prefetch(prepare: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Value]:
    """`prepare(key)` for each key, in order. An error is raised at its own key; leaving early stops the thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        pending: deque[Future[Value]] = deque()
        try:
            for key in keys:
                pending.append(thread.submit(prepare, key))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

"""An event loop whose clock jumps (waiting for something that never comes is an error), and the log of a test."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from io import StringIO
from typing import Any, TypeVar

import pytest
import structlog

from retrieval_operator.telemetry import configure_logging

T = TypeVar("T")


class JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("every task waits for something that nobody will do")
        if not events:
            self.now += timeout or 0.0
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


@pytest.fixture(scope="session")
def in_virtual_time() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine to its end on a loop of its own; `loop.time()` starts at 0."""

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """What is logged meanwhile, one JSON document per line."""
    stream = StringIO()
    configure_logging("json", "debug", stream)
    yield stream
    structlog.reset_defaults()

"""What all fakes can do to a test: fail on demand, lose an answer, show an older state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from retrieval_operator.ports import PortError, Retryable

Clock = Callable[[], int]
State = TypeVar("State")
# Older states than any test asks for are dropped. A gut feeling.
_STATES_KEPT = 64


@dataclass(frozen=True)
class _Fault:
    method: str
    error: PortError
    moment: Literal["before", "after"]


class Fake(Generic[State]):
    """Base of the fakes: one immutable state, replaced by each change, with its past.

    `calls` lists every call as (method, subject), failed ones included; `created` the subjects of calls that brought
    something into being, so that a test can assert that nothing was created twice. `lag` makes observations show the
    state of so many changes ago; acting always meets the newest one, as with a real system.
    """

    def __init__(self, initial: State) -> None:
        self.calls: list[tuple[str, str]] = []
        self.created: list[str] = []
        self.lag = 0
        self._states = deque([initial], maxlen=_STATES_KEPT)
        self._faults: list[_Fault] = []

    def fail(
        self,
        method: str,
        error: PortError | None = None,
        *,
        times: int = 1,
        moment: Literal["before", "after"] = "before",
    ) -> None:
        """The next `times` calls of the method raise (Retryable by default), with no effect; or `after` the effect,
        as when an answer is lost on its way.
        """
        fault = _Fault(method, error or Retryable(f"{method} fails because a test wants it"), moment)
        self._faults += [fault] * times

    @property
    def _now(self) -> State:
        return self._states[-1]

    @property
    def _seen(self) -> State:
        return self._states[max(0, len(self._states) - 1 - self.lag)]

    def _change(self, state: State) -> None:
        if state != self._now:
            self._states.append(state)

    @contextmanager
    def _call(self, method: str, subject: str) -> Iterator[None]:
        """Around the body of each port method."""
        self.calls.append((method, subject))
        self._raise_fault(method, "before")
        yield
        self._raise_fault(method, "after")

    def _raise_fault(self, method: str, moment: Literal["before", "after"]) -> None:
        for fault in self._faults:
            if fault.method == method:
                if fault.moment == moment:
                    self._faults.remove(fault)
                    raise fault.error
                return  # this method's next fault is for the other moment

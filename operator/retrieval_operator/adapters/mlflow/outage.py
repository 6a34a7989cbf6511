"""Whether an MLflow is silent, so that not every object of the control plane waits for its time-out to find out.

Only a silence is remembered. What is refused, or answered with an error, is told within milliseconds and costs nobody
a wait; it may also be one object's own trouble, such as its credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from retrieval_operator.ports import PortError, Retryable

# A gut feeling: soon enough after MLflow is back. Less than a request's time-out, so that while one object waits for
# what only it asks (a search too large, say) another one has its turn, and finds MLflow well.
ASK_AGAIN_S = 10.0


class NoAnswer(Retryable):
    """Nobody answered in time, or a gateway said so of the server behind it."""


class Outage:
    """What is known of one MLflow. `now` in seconds, of any beginning."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._answers = 0
        self._silence = ""  # a sentence; "" while MLflow answers
        self._asked_at = 0.0

    def check(self) -> None:
        """Raises NoAnswer while MLflow is silent, but lets one request through every ASK_AGAIN_S."""
        if not self._silence:
            return
        now = self._now()
        if 0 <= now - self._asked_at < ASK_AGAIN_S:  # negative: the clock was set back
            raise NoAnswer(self._silence)
        self._asked_at = now

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request: `check`, then remember how it ended. An error that MLflow answers is an answer."""
        self.check()
        answers = self._answers
        try:
            yield
        except NoAnswer as error:
            if self._answers == answers:  # else MLflow is there, and it is this question that takes it too long
                self._silence, self._asked_at = str(error), self._now()
            raise
        except PortError:
            self.answered()
            raise
        self.answered()

    def answered(self) -> None:
        self._answers += 1
        self._silence = ""

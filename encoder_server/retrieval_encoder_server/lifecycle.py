"""When the server is ready, when a connection ends, and how the process stops.

    Serving  --TERM-->  Draining  --DRAIN_SECONDS-->  Closing  --requests in flight are answered-->  exit 0

While draining, readiness is false and every response ends its connection, but every request is answered: clients and
load balancers learn at their own pace to go elsewhere. Only then is the listening socket closed.
Decisions only; `connections.py` and `server.py` carry them out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

# Old connections must not all end in the same second after a rollout.
AGE_JITTER = 0.1
# Closing an idle connection can meet the client's next request on the wire, and HTTP/1.1 has no way to take that back.
# So an aged connection ends with a response ("Connection: close"), and is closed while idle only when its client has
# been silent for this long: well beyond the pauses of a busy client, so that a race is improbable. A gut feeling.
QUIET_S = 10.0


class Lifecycle:
    """One per process. Times are those of `clock`, in seconds."""

    def __init__(
        self,
        *,
        connection_age_s: float,
        drain_s: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._connection_age_s = connection_age_s
        self._drain_s = drain_s
        self._clock = clock
        self._rng = rng or random.Random()
        self._drain_until: float | None = None

    @property
    def is_draining(self) -> bool:
        return self._drain_until is not None

    def begin_drain(self, *, immediately: bool = False) -> None:
        """Stop being ready. A second call never lengthens the drain; `immediately` ends it now."""
        until = self._clock() + (0.0 if immediately else self._drain_s)
        self._drain_until = until if self._drain_until is None else min(self._drain_until, until)

    def is_drained(self) -> bool:
        """True once the time for draining is over and the listening socket may be closed."""
        return self._drain_until is not None and self._clock() >= self._drain_until

    def connection_expires_at(self, opened_at: float) -> float:
        """From this time on, a response ends the connection."""
        return opened_at + self._connection_age_s * self._rng.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)

    def must_end(self, expires_at: float, now: float) -> bool:
        """Whether a response sent now has to end its connection."""
        return self.is_draining or now >= expires_at


def idle_close_at(expires_at: float, active_at: float) -> float:
    """When an idle connection may be closed: it has aged, and nothing was sent or received for QUIET_S."""
    return max(expires_at, active_at + QUIET_S)

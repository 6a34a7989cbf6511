"""Bounds on the logs of this home's processes: they run for months, and nobody else rotates what they write.

A process inherits its open log, so the file must stay the same one: its content is copied to `log.1` and cut off
(what `logrotate` calls copytruncate; every writer appends, so it goes on at the new end). Lines written between the
copy and the cut are lost. How many logs there are is bounded elsewhere: they go with their attempt or stack.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

# A server that logs one line per second writes 10 MB in a day or two; twice this is kept. A gut feeling.
MAX_BYTES = 10 * 2**20

_LOGS = ("workloads/*/*/*/log", "stacks/*/*/*/replica-*/log", "proxies/*/*/log", "services/*/log")


def bound_logs(root: Path, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Cut the logs below this home that are larger; returns them. One that cannot be cut is left to the next time."""
    cut = []
    for pattern in _LOGS:
        for log in root.glob(pattern):
            with suppress(OSError):  # removed meanwhile, or no room for the copy
                if log.stat().st_size > max_bytes:
                    shutil.copyfile(log, log.with_name("log.1"))
                    log.with_name("log.1").chmod(0o600)
                    os.truncate(log, 0)
                    cut.append(log)
    return cut

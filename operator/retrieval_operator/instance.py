"""One controller per home: a lock the kernel releases with the process, and a note of who holds it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from retrieval_operator.adapters.local.home import LocalHome, lock_within, make_directory

# A command that only looks (holder) has the lock for microseconds; another controller has it for good.
_TAKE_TIMEOUT_S = 0.5
_STOP_POLL_S = 0.1


@dataclass(frozen=True)
class Holder:
    """The process that runs the controller; with its start time, a reused pid is not taken for it."""

    pid: int
    started_at: float
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


class HeldElsewhere(Exception):
    """Another process runs this home's controller; the message says which."""


@contextmanager
def sole_controller(home: LocalHome, command: str) -> Iterator[None]:
    """Be the one controller of this home while inside. Raises HeldElsewhere."""
    path = _lock_file(home)
    make_directory(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lock_within(descriptor, _TAKE_TIMEOUT_S):
            raise HeldElsewhere(f"the controller of {home.root} runs already: {_note(path) or 'an unknown process'}")
        me = Holder(os.getpid(), psutil.Process().create_time(), command)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(home: LocalHome) -> Holder | None:
    """Who runs the controller of this home now; None when nobody does."""
    path = _lock_file(home)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if lock_within(descriptor, 0):
            return None
        return _note(path) or Holder(0, 0.0, "unknown command")
    finally:
        os.close(descriptor)


def stop_controller(home: LocalHome, patience_s: float) -> Holder | None:
    """Ask this home's controller to end, and after the patience kill it. Returns who it was, None when there was none.

    Its workloads and servers are not touched.
    """
    found = holder(home)
    if found is None:
        return None
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        _signal(found, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if holder(home) is None:
                return found
            time.sleep(_STOP_POLL_S)
    raise HeldElsewhere(f"the controller of {home.root} could not be ended: {found}")


def _signal(found: Holder, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(found.pid)
        if process.create_time() == found.started_at:
            process.send_signal(number)


def _lock_file(home: LocalHome) -> Path:
    return home.root / "locks" / "controller"


def _note(path: Path) -> Holder | None:
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(path.read_text()))
    return None

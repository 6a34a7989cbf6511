"""A cluster for as long as tests need it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Run = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def lent(run: Run) -> Iterator[subprocess.CompletedProcess[str]]:
    """What `up` said. One that runs already is used and left; else it is down at the end, whatever ends it.

    `run` runs a command of native_cluster. One that is interrupted (Ctrl-C) is killed a moment later, which leaves what
    it made so far: only another `down` removes that.
    """
    if run("status").returncode == 0:
        yield run("up", "--no-prepare")
        return
    try:
        started = run("up", "--no-prepare")
    except BaseException:
        run("down")
        raise
    try:
        yield started
    finally:
        if started.returncode == 0:  # else it has removed what it made
            _down(run)


def _down(run: Run) -> None:
    try:
        stopped = run("down")
    except BaseException:
        run("down")
        raise
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr

"""Processes that outlive the control plane, started at most once, found again, and never left behind.

A *process directory* is one command: its claim, its record, its log. The rules, and why each crash is harmless:

1. Whoever wants to start it takes the flock of `lock`, and gives up when `claim` exists.
2. It writes spec.json, then creates `claim` (O_EXCL), then starts the wrapper, which inherits the locked descriptor.
   From then on the kernel keeps the lock for the starter and the wrapper alike.

| killed                             | lock | claim | exit.json | is read as           | the next start           |
|------------------------------------|------|-------|-----------|----------------------|--------------------------|
| starter, before the claim          | free | no    | no        | never started        | starts it                |
| starter, after the claim           | free | yes   | no        | Lost (it never ran)  | does nothing             |
| starter, after the wrapper started | held | yes   | no        | Running              | does nothing             |
| wrapper, at any time               | free | yes   | no        | Lost; orphans remain | does nothing             |
| the machine                        | free | yes   | no        | Lost                 | does nothing             |
| nobody: it ended                   | free | yes   | yes       | Exited               | does nothing             |

No pid is trusted for being alive, so a reused pid (or a reboot) cannot be taken for ours; before a signal is sent the
pid's start time is compared. Orphans of a killed wrapper carry a mark in their environment (wrapper.MARK) and are
killed before the same object starts anything new. `restart` is the exception to "at most once", for servers: it runs
a directory again whose process is no more, under the same lock.

Where there is no /proc (macOS), a killed wrapper's orphans are found by their process group only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrieval_operator.adapters.local import wrapper
from retrieval_operator.adapters.local.home import lock_within, make_directory, read_json, told_to_people, write_json
from retrieval_operator.ports import Rejected, Retryable

WRAPPER = (sys.executable, "-I", "-S", wrapper.__file__)
# The lock of a directory that nothing runs in is held for some file writes only.
_START_TIMEOUT_S = 10.0
# A stopped wrapper ends its command within the grace; this is for its own start and its records. A gut feeling.
_STOP_MARGIN_S = 5.0
# Somebody who looks holds the lock for microseconds; one who restarts it makes settling needless.
_SETTLE_TIMEOUT_S = 0.2
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """When a server that ended is started again. `limit` counts failures in a row, None is no limit.

    A run of `healthy_s` resets the count; back-off doubles from `backoff_s` to `max_backoff_s`. Exit codes in
    `final_codes` end it at once.
    """

    limit: int | None = None
    backoff_s: float = 0.2
    max_backoff_s: float = 30.0
    healthy_s: float = 60.0
    final_codes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run. `environment` is complete and never written to a file; `record` is kept beside the command.

    `deadline_s` None: no limit. `grace_s` is the time between TERM and KILL.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    grace_s: float = 10.0
    nice: int = 0
    restarts: Restarts | None = None


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How it ended. `code` None with `signal` None: it never ran. `reason` is ours, or what the program said."""

    code: int | None
    signal: int | None
    reason: str
    message: str
    last_lines: str
    finished_at: int


@dataclass(frozen=True, kw_only=True)
class ProcessObserved:
    """`pid` is the wrapper's, 0 while unknown. `starts` counts how often the command was started."""

    state: Literal["Running", "Exited", "Lost"]
    record: Mapping[str, Any]
    started_at: int
    pid: int = 0
    starts: int = 0
    exit: Exit | None = None


class Supervisor:
    """Starts, observes and stops process directories. Keeps no state of its own: any number may work side by side."""

    def __init__(self, wrapper_command: Sequence[str] = WRAPPER) -> None:
        self._wrapper_command = tuple(wrapper_command)

    def start(self, directory: Path, command: Command) -> bool:
        """Start it once in the life of the directory; False when that was done before, whatever became of it."""
        if (directory / "claim").exists():
            return False
        make_directory(directory)
        with self._locked(directory, _START_TIMEOUT_S) as lock:
            if lock is None or (directory / "claim").exists():
                return False
            self._launch(directory, command, lock)
        return True

    def restart(self, directory: Path, command: Command) -> bool:
        """Run it (again) unless it runs; False when it does. Its orphans are killed first."""
        make_directory(directory)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_running(directory):
            # A short wait: the lock may be that of a wrapper in its last moment, or of somebody who looks.
            with self._locked(directory, _POLL_S) as lock:
                if lock is not None:
                    _kill_orphans(directory)
                    for name in ("exit.json", "process.json", "claim"):
                        (directory / name).unlink(missing_ok=True)
                    self._launch(directory, command, lock)
                    return True
            if time.monotonic() >= deadline:
                raise Retryable(f"{directory} is locked by a process that neither runs the command nor ends")
        return False

    def observe(self, directory: Path) -> ProcessObserved | None:
        """What became of it; None when it was never started."""
        claim = directory / "claim"
        try:
            claimed_at = int(claim.stat().st_mtime)
        except OSError:
            return None
        # A restart between the two looks would read as Lost; the second round sees its lock.
        for _ in range(2):
            running = _is_locked(directory)
            end = _readable(directory / "exit.json")
            if running or end:
                break
        process = _readable(directory / "process.json") or {}
        return ProcessObserved(
            state="Exited" if end else "Running" if running else "Lost",
            record=(_readable(directory / "spec.json") or {}).get("record", {}),
            started_at=process.get("started_at", claimed_at),
            pid=process.get("pid", 0),
            starts=process.get("starts", 0),
            exit=_exit(end) if end else None,
        )

    def stop(self, directory: Path) -> None:
        """End it, and everything it started. Returns when nothing of it runs; Unknown directories are fine.

        Blocks up to the command's grace and a few seconds.
        """
        if not (directory / "claim").exists():
            return
        grace_s = (_readable(directory / "spec.json") or {}).get("grace_s", 0)
        if not _ends_after(directory, signal.SIGTERM, grace_s + _STOP_MARGIN_S):
            _ends_after(directory, signal.SIGKILL, _STOP_MARGIN_S)
        with self._locked(directory, _START_TIMEOUT_S) as lock:
            if lock is None:
                raise Retryable(f"the process of {directory} does not end; see its log")
            _settle(directory, "Stopped", "")

    def settle_lost(self, directory: Path) -> None:
        """Kill the orphans of a lost process and record its end. Any other state: nothing."""
        process = self.observe(directory)
        if process is None or process.state != "Lost":
            return
        with self._locked(directory, _SETTLE_TIMEOUT_S) as lock:
            if lock is not None:
                _settle(directory, "Lost", "its supervising process was killed, or the machine was restarted")

    def remove(self, directory: Path) -> None:
        """Stop it and forget it. A removal that was cut leaves a hidden directory; the next one clears it."""
        self.stop(directory)
        for leftover in directory.parent.glob(f".removed.{directory.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        grave = directory.with_name(f".removed.{directory.name}.{os.getpid()}")
        with told_to_people(directory):
            # Renamed first: half a directory must not look like a process that was lost.
            with suppress(FileNotFoundError):
                directory.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def _is_running(self, directory: Path) -> bool:
        process = self.observe(directory)
        return process is not None and process.state == "Running"

    def _launch(self, directory: Path, command: Command, lock: int) -> None:
        write_json(
            directory / "spec.json",
            {
                "argv": list(command.argv),
                "deadline_s": command.deadline_s,
                "grace_s": command.grace_s,
                "nice": command.nice,
                "restarts": vars(command.restarts) if command.restarts else None,
                "record": dict(command.record),
            },
        )
        with told_to_people(directory):
            os.close(os.open(directory / "claim", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            self._spawn(directory, command.environment, lock)
        except (OSError, subprocess.CalledProcessError) as error:
            # Known not to run: it may be tried again. (A crash here is not known: then it is Lost.)
            (directory / "claim").unlink(missing_ok=True)
            raise Retryable(f"cannot start {command.argv[0]} for {directory}: {error}") from error

    def _spawn(self, directory: Path, environment: Mapping[str, str], lock: int) -> None:
        with open(directory / "log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            # Returns when the wrapper has detached itself (some 15 ms).
            subprocess.run(
                [*self._wrapper_command, str(directory), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                cwd=directory,
                pass_fds=[lock],
                start_new_session=True,
                check=True,
            )

    @contextmanager
    def _locked(self, directory: Path, timeout_s: float) -> Iterator[int | None]:
        """The locked descriptor, None when somebody else kept the lock. Our copy is closed, the wrapper's remains."""
        path = directory / "lock"
        with told_to_people(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not lock_within(descriptor, timeout_s):
                yield None
                return
            if not _is_same_file(descriptor, path):
                raise Retryable(f"{directory} was removed at this very moment")
            yield descriptor
        finally:
            os.close(descriptor)


def _settle(directory: Path, reason: str, message: str) -> None:
    """Kill what a killed wrapper left running, and write the record that it could not write."""
    _kill_orphans(directory)
    if _readable(directory / "exit.json") is None:
        write_json(
            directory / "exit.json",
            {
                "code": None,
                "signal": None,
                "reason": reason,
                "message": message,
                "last_lines": wrapper.last_lines(str(directory / "log")),
                "finished_at": int(time.time()),
            },
        )


def _kill_orphans(directory: Path) -> None:
    """The caller holds the directory's lock, so no wrapper is alive."""
    child = (_readable(directory / "process.json") or {}).get("child")
    if child and not Path("/proc/self").exists():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    wrapper.kill_marked(str(directory))


def _ends_after(directory: Path, number: int, patience_s: float) -> bool:
    """Signal the wrapper (which may not have written its pid yet) and wait for its end."""
    _until(lambda: not _is_locked(directory) or _signalled(directory, number), _STOP_MARGIN_S)
    return _until(lambda: not _is_locked(directory), patience_s)


def _signalled(directory: Path, number: int) -> bool:
    """Send a signal to the wrapper, if it is known already and still the same process."""
    process = _readable(directory / "process.json")
    if not process or wrapper.start_time(process["pid"]) != process["start_time"]:
        return False
    with suppress(ProcessLookupError):
        os.kill(process["pid"], number)
    return True


def _is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _readable(path: Path) -> dict[str, Any] | None:
    """The document; None when it is missing or damaged, which means the same here: nothing is known."""
    try:
        return read_json(path)
    except Rejected:
        return None


def _exit(document: Mapping[str, Any]) -> Exit:
    known = {name: document.get(name) for name in ("code", "signal")}
    texts = {name: str(document.get(name, "")) for name in ("reason", "message", "last_lines")}
    return Exit(**known, **texts, finished_at=document.get("finished_at", 0))  # type: ignore[arg-type]


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True

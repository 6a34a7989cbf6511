"""Starts one command, stays with it to its end and records how it ended. The other half of processes.py.

Run as `python -I -S wrapper.py DIRECTORY LOCK_FD`: by path and isolated, so that no environment variable and no
installed package can break supervision. Standard library only, and of that little: one wrapper lives beside every
process of local mode. It detaches first, so that it survives whoever started it.

It holds the flock of DIRECTORY/lock (inherited as LOCK_FD) as long as it lives; the kernel releases it however it
dies. exit.json is written last, when nothing of the command runs any more. So, for an onlooker: the lock is held: it
runs; exit.json exists: it ended; neither: the wrapper was killed, and the process is lost.

    spec.json      read: argv, deadline_s, grace_s, nice, restarts
    process.json   written before and after each start: {pid, start_time, child, starts, started_at}
    exit.json      written last: {code, signal, reason, message, last_lines, starts, finished_at}
    termination.json   what the command wrote to RETRIEVAL_TERMINATION_LOG
"""

# Importing pathlib would cost as much as all of the rest.
# ruff: noqa: PTH105, PTH108, PTH112, PTH118, PTH123, PTH208
from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the 2 ms of importing typing
if TYPE_CHECKING:
    from typing import Any

# Every process of the command carries this variable with the directory as its value. Programs such as torchrun put
# their children into sessions of their own, out of reach of a signal to the group; by this mark all are found.
MARK = "RETRIEVAL_PROCESS_DIRECTORY"
TERMINATION_LOG = "RETRIEVAL_TERMINATION_LOG"
EXEC_FAILED = 127  # what a shell returns for a command that it cannot start

# A killed process goes at once unless the kernel holds it (a dead network disk); then waiting longer does not help.
_KILL_TIMEOUT_S = 5.0
# One try per second.
_RECORD_TRIES = 600
_TAIL_BYTES = 16_384
_TAIL_LINES = 20
_LINE_CHARS = 400
_MESSAGE_CHARS = 1024


def start_time(pid: int) -> str:
    """When a process started, as text that no other process with the same pid has; "" when there is none.

    Linux: boot id and clock ticks since boot (proc(5), field 22 of stat). Elsewhere the pid must do.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat, open("/proc/sys/kernel/random/boot_id") as boot:
            state, *fields = stat.read().rpartition(b")")[2].split()
            return "" if state == b"Z" else f"{boot.read().strip()}:{int(fields[18])}"
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return f"pid:{pid}"


def marked_processes(directory: str) -> list[int]:
    """Processes of this user that carry the mark of the directory. Empty where there is no /proc."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as environ:
                if mark in environ.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return found


def kill_marked(directory: str) -> None:
    """Kill everything that carries the mark and wait until it is gone; processes may fork while we look."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (pids := marked_processes(directory)) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid, signal.SIGKILL)
        time.sleep(0.005)


class Wrapper:
    def __init__(self, directory: str, umask: int) -> None:
        """`umask` is the command's: its results may be meant for others, our records are not."""
        self._directory = directory
        self._umask = umask
        self._stop_requested = False
        self._wake, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        os.set_blocking(self._wake, False)
        # A signal writes a byte into the pipe, so that one select() waits for signals and time alike, without polling.
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        with open(self._path("spec.json")) as stream:
            self._spec: dict[str, Any] = json.load(stream)

    def run(self) -> None:
        os.nice(self._spec["nice"])
        policy = self._spec["restarts"]
        starts = failures = 0
        while True:
            starts += 1
            began = time.monotonic()
            end = self._run_once(starts)
            failures = 1 if policy and time.monotonic() - began >= policy["healthy_s"] else failures + 1
            delay_s = _restart_delay_s(policy, end, failures)
            if delay_s is None:
                break
            _say(f"ended with {_ending(end)}; starting again in {delay_s:g} s (failure {failures})")
            self._wait_until(lambda: self._stop_requested, delay_s)
            if self._stop_requested:
                end["reason"] = "Stopped"
                break
        self._record_end({**end, "starts": starts})

    def _run_once(self, starts: int) -> dict[str, Any]:
        """Start the command once and see it to its end, its deadline or a request to stop."""
        if self._stop_requested:
            return {"code": None, "signal": None, "reason": "Stopped", "message": ""}
        self._record_process(starts, None)
        _remove(self._path("termination.json"))
        environment = {
            **os.environ,
            MARK: self._directory,
            TERMINATION_LOG: self._path("termination.json"),
        }
        try:
            child = subprocess.Popen(
                self._spec["argv"], stdin=subprocess.DEVNULL, env=environment, start_new_session=True, umask=self._umask
            )
        except OSError as error:
            return {"code": EXEC_FAILED, "signal": None, "reason": "CannotStart", "message": str(error)}
        with suppress(OSError):  # a full disk: our own pid, which matters more, is recorded already
            self._record_process(starts, child.pid)
        overdue = not self._wait_until(
            lambda: child.poll() is not None or self._stop_requested, self._spec["deadline_s"]
        )
        reason = "DeadlineExceeded" if overdue else ""
        if child.poll() is None:
            reason = reason or "Stopped"
            self._terminate(child)
        _kill_group(child.pid, signal.SIGKILL)
        kill_marked(self._directory)
        return self._end(child.returncode, reason)

    def _terminate(self, child: subprocess.Popen[bytes]) -> None:
        """TERM to the group, KILL after the grace."""
        _kill_group(child.pid, signal.SIGTERM)
        if not self._wait_until(lambda: child.poll() is not None, self._spec["grace_s"]):
            _kill_group(child.pid, signal.SIGKILL)
            child.wait()

    def _end(self, returncode: int, reason: str) -> dict[str, Any]:
        """Our reason wins over the command's: a program that was stopped may well call itself crashed."""
        said_reason, message = self._termination_message()
        if reason == "DeadlineExceeded":
            message = f"was stopped after its deadline of {self._spec['deadline_s']} s"
        return {
            "code": returncode if returncode >= 0 else None,
            "signal": -returncode if returncode < 0 else None,
            "reason": reason or said_reason,
            "message": message,
        }

    def _termination_message(self) -> tuple[str, str]:
        """Reason and sentence that the command left for people, empty when it left none (or nonsense)."""
        try:
            with open(self._path("termination.json")) as stream:
                said = json.loads(stream.read(_TAIL_BYTES))
            return str(said["reason"])[:64], str(said["message"])[:_MESSAGE_CHARS]
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _record_process(self, starts: int, child: int | None) -> None:
        document = {
            "pid": os.getpid(),
            "start_time": start_time(os.getpid()),
            "child": child,
            "starts": starts,
            "started_at": int(time.time()),
        }
        _write_json(self._path("process.json"), document)

    def _record_end(self, end: dict[str, Any]) -> None:
        document = {**end, "last_lines": last_lines(self._path("log")), "finished_at": int(time.time())}
        for _ in range(_RECORD_TRIES):
            try:
                return _write_json(self._path("exit.json"), document)
            except OSError as error:  # a full disk is soon noticed and emptied by somebody
                _say(f"cannot record the end: {error}")
                time.sleep(1)
        return None  # without a record it will be read as lost

    def _wait_until(self, condition: Any, timeout_s: float | None) -> bool:
        """Wait for signals until the condition holds; False when the time is over first. None: no limit."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            select.select([self._wake], [], [], remaining)
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
        return True

    def _request_stop(self, *_: object) -> None:
        self._stop_requested = True

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def last_lines(log: str) -> str:
    """The end of a log for people. Of a line that a progress bar redraws (carriage returns) the last state counts."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip().rpartition("\r")[2][:_LINE_CHARS] for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])


def _restart_delay_s(policy: dict[str, Any] | None, end: dict[str, Any], failures: int) -> float | None:
    """How long to wait before the next start; None: do not start again."""
    if policy is None or end["reason"] in {"Stopped", "DeadlineExceeded"} or end["code"] in policy["final_codes"]:
        return None
    if policy["limit"] is not None and failures > policy["limit"]:
        return None
    return min(float(policy["backoff_s"]) * 2.0 ** min(failures - 1, 16), float(policy["max_backoff_s"]))


def _ending(end: dict[str, Any]) -> str:
    return f"signal {end['signal']}" if end["signal"] else f"exit code {end['code']}"


def _kill_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(leader, number)


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _write_json(path: str, document: dict[str, Any]) -> None:
    temporary = f"{path}.new"
    with open(temporary, "w") as stream:
        json.dump({"formatVersion": 1, **document}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _say(sentence: str) -> None:
    sys.stderr.write(f"[retrieval-operator] {sentence}\n")
    sys.stderr.flush()


def main() -> None:
    directory, lock = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)  # whoever waits for us learns that the wrapper exists; the wrapper is nobody's child
    os.setsid()
    os.set_inheritable(lock, False)  # the command must not keep the lock
    Wrapper(directory, umask=os.umask(0o077)).run()


if __name__ == "__main__":
    main()

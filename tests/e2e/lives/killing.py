"""Kills the operator whenever it has done something new for a life: SIGKILL, so that nothing ends in good order.

What it did is read from the API server's audit log, a moment after the answer to it was sent: what would have followed
in the same pass is cut off. It can only be done where the node's processes are this machine's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import audit
from lives.deployments import ACCOUNT
from lives.namespaces import OPERATOR
from lives.place import Kubectl

CHILDREN = ("jobs", "pytorchjobs", "services", "poddisruptionbudgets", "inferenceservices")
_POLL_S = 0.02
_GONE_S = 30
_HASH = re.compile(r"-[0-9a-f]{8,}(?=-|$)")


def family(request: audit.Request) -> str:
    """A child by what it is for: its resource, and its name without the hashes that another training changes."""
    return f"{request.resource} {_HASH.sub('-*', request.name)}"


def made(log: Path, namespace: str, since: float = 0.0) -> list[audit.Request]:
    """What the operator created in the namespace."""
    return _successes(log, namespace, "create", since)


def removed(log: Path, namespace: str, since: float = 0.0) -> list[audit.Request]:
    """What it deleted there."""
    return _successes(log, namespace, "delete", since)


def _successes(log: Path, namespace: str, verb: str, since: float) -> list[audit.Request]:
    return [
        request
        for request in audit.read(log)
        if (request.user, request.namespace, request.verb) == (ACCOUNT, namespace, verb)
        and request.resource in CHILDREN
        and request.code < 300
        and request.asked_at >= since
    ]


class Killer:
    """`signs` are what the operator did for the life, `kills` those at which it was killed, both in their order.

    What follows a sign within milliseconds is another sign of a process that is already dead, and kills nobody. A
    trouble of the killer's thread is raised by `killing`.
    """

    def __init__(self, kubectl: Kubectl, log: Path, namespace: str, *, patient_at: str = "") -> None:
        """`patient_at`: after this kill the Lease is left to run out, which takes 90 s; else a person takes it off."""
        self.signs: list[str] = []
        self.kills: list[str] = []
        self._kubectl = kubectl
        self._log = log
        self._namespace = namespace
        self._patient_at = patient_at
        self._step = ""
        self._stop = threading.Event()

    def follow(self) -> None:
        """Until `stop`: kill the operator at each sign that was not there before."""
        with self._log.open() as lines:
            lines.seek(0, os.SEEK_END)
            rest = ""
            while not self._stop.is_set():
                rest += lines.readline()
                if not rest.endswith("\n"):
                    time.sleep(_POLL_S)
                    continue
                sign, rest = self._sign(rest), ""
                if sign and sign not in self.signs:
                    self.signs.append(sign)
                    self._kill(sign)

    def stop(self) -> None:
        self._stop.set()

    def _sign(self, line: str) -> str:
        """What the line tells that the operator did for this life; "" for what does not count."""
        if ACCOUNT not in line or f'"namespace":"{self._namespace}"' not in line:
            return ""
        event = json.loads(line)
        request = audit.Request.of(event)
        if request is None or (request.user, request.namespace) != (ACCOUNT, self._namespace) or request.code >= 300:
            return ""
        if request.subresource == "status":
            return self._next_step(event.get("requestObject", {}).get("status", {}))
        if request.resource in CHILDREN and request.verb == "create":
            return f"created {family(request)}"
        if request.resource in CHILDREN and request.verb == "delete":
            return f"deleted one of {request.resource}"
        return ""

    def _next_step(self, status: dict[str, Any]) -> str:
        step = status.get("candidate", {}).get("step") or status.get("phase", "")
        changed, self._step = step != self._step, step
        return f"step {step}" if changed else ""

    def _kill(self, sign: str) -> None:
        killed = [pid for pid in _processes() if _killed(pid)]
        print(f"{time.strftime('%H:%M:%S')} {sign}: {'killed' if killed else 'it was dead'}", flush=True)
        if not killed:
            return
        self.kills.append(sign)
        place = ("--namespace", OPERATOR)
        # Its pod, too: the kubelet would start the same container ever more rarely.
        pods = ("delete", "pods", "--selector=app.kubernetes.io/component=control-plane")
        self._kubectl(*place, *pods, "--force", "--grace-period=0", "--wait=false")
        if sign != self._patient_at:
            patch = '{"spec": {"holderIdentity": null}}'
            self._kubectl(*place, "patch", "lease", OPERATOR, "--type=merge", f"--patch={patch}")


@contextmanager
def killing(killer: Killer) -> Iterator[None]:
    """The killer is at work within the block."""
    trouble: list[BaseException] = []

    def follow() -> None:
        try:
            killer.follow()
        except BaseException as error:  # raised again below, in the test's own thread
            trouble.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        killer.stop()
        thread.join(timeout=60)
    if trouble:
        raise trouble[0]


def _processes() -> list[int]:
    """The operator's processes in pods of this machine's cluster; of another release there is none."""
    found = []
    for directory in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile
            if directory.name.isdecimal() and "/kubepods/" in (directory / "cgroup").read_text():
                command = (directory / "cmdline").read_bytes().split(b"\0")
                if command[-3:] == [b"kubernetes", b"run", b""]:
                    found.append(int(directory.name))
    return found


def _killed(pid: int) -> bool:
    """Whether it was there to be killed; it is no more when this returns."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + _GONE_S
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} outlives SIGKILL"
        time.sleep(_POLL_S)
    return True


def _runs(pid: int) -> bool:
    """A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False

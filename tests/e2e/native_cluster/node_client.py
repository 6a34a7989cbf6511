"""The host's side of the node: start it, ask it, end it.

STATE/node.lock is held from before the node is started until its last process is gone (`unshare` waits for its child,
and the kernel lets an init end only after every process of its namespace). So a free lock means that nothing runs,
without trusting any process number.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from native_cluster import node
from native_cluster.layout import ClusterError, Layout

NODE_TIMEOUT_S = 30
_REQUEST_TIMEOUT_S = 10.0
_POLL_S = 0.1
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Makes the node's namespaces, and runs in them what follows.
UNSHARE = (
    *("unshare", "--mount", "--net", "--pid", "--ipc", "--uts"),
    *("--fork", "--mount-proc", "--propagation", "slave"),
)


class NodeClient:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def start_node(self) -> None:
        """Create the namespaces and their init; returns when it answers."""
        with locked(self._layout.state / "node.lock") as lock, self._layout.log("node").open("ab") as log:
            subprocess.Popen(
                [*UNSHARE, sys.executable, "-I", "-S", node.__file__, str(self._layout.state), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                env={"PATH": _PATH},  # a proxy in the caller's environment would take the calls to webhooks
                start_new_session=True,
                cwd="/",
            )
        until(self.answers, NODE_TIMEOUT_S, "the node", self._layout.log("node"))

    def answers(self) -> bool:
        return self.programs() is not None

    def may_be_alive(self) -> bool:
        """Whether any process of the node is left, even one that does not answer yet."""
        path = self._layout.state / "node.lock"
        if not path.exists():
            return False
        with suppress(ClusterError), locked(path):
            return False
        return True

    def pid(self) -> int:
        """The init's process number as the host sees it, from the kernel's record of who listens."""
        with self._connected() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def start(self, program: str) -> None:
        self._ask({"start": program})

    def keep(self) -> None:
        """From now on, what ends by itself is started again."""
        self._ask({"keep": True})

    def signal(self, program: str, number: int) -> None:
        self._ask({"signal": program, "number": number})

    def programs(self) -> dict[str, int | None] | None:
        """Exit codes by program, None while it runs. None when no node answers."""
        try:
            answer = self._ask({"list": True})
        except OSError:
            return None
        return dict(answer["programs"])

    def url_answers(self, url: str) -> bool:
        """Whether a GET from inside the node gives 200: its programs' health is on its own loopback."""
        return bool(self._ask({"answers": url})["answers"])

    def exit(self) -> None:
        """End the node, and by the kernel's hand all that runs in it; returns when nothing is left."""
        if not self.may_be_alive():
            return
        # A node that was only just started may not listen yet.
        with suppress(ClusterError):
            until(lambda: self.answers() or not self.may_be_alive(), NODE_TIMEOUT_S, "the node")
        with suppress(OSError):
            pid = self.pid()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.may_be_alive(), NODE_TIMEOUT_S, f"the end of all processes of {self._layout.state}")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._connected() as connection, connection.makefile("rw") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            line = stream.readline()
        if not line:
            raise ConnectionResetError("the node ended in the middle of a request")
        answer = json.loads(line)
        if "error" in answer:
            raise ClusterError(answer["error"], self._layout.log("node"))
        return dict(answer)

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            connection.connect(str(self._layout.node_socket))
            yield connection


@contextmanager
def locked(path: Path, *, timeout_s: float = 0.0, busy: str = "") -> Iterator[int]:
    """The descriptor of the locked file, which children may inherit. ClusterError when somebody else keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not _lock(descriptor):
            if time.monotonic() >= deadline:
                raise ClusterError(busy or f"{path} is locked by a process that still runs")
            time.sleep(_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def until(
    condition: Callable[[], bool], timeout_s: float, what: str, log: Path | None = None, poll_s: float = _POLL_S
) -> None:
    """Wait for it; ClusterError when it does not become true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise ClusterError(f"{what}: not seen within {timeout_s:.0f} s", log)
        time.sleep(poll_s)

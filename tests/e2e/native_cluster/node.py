"""The init of the cluster's namespaces: starts programs, reaps them, and tells of them over a Unix socket.

Run as `unshare --pid --mount ... python -I -S node.py STATE LOCK` (LOCK is a descriptor), with the standard library
only. It decides nothing: what to start, and in which order, is the caller's affair (programs.py). When it ends, the
kernel kills all that it started.

One request per connection, a JSON object on one line; the answer likewise, with "error" when it could not be done:
    {"start": NAME}                     starts the command in STATE/programs/NAME.json, once until it has ended
    {"keep": true}                      from now on starts again what ends by itself, as an init system would
    {"signal": NAME, "number": 15}      signals it, and then keeps it no more; does nothing when it has ended
    {"list": true}                      {NAME: exit code, or null while it runs}; a signal's is negative
    {"answers": URL}                    whether a GET from inside gives 200
    {"exit": true}                      ends the node, with everything in it
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

HOSTNAME = "node1"
_RESTART_AFTER_S = 1.0
_REQUEST_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 3.0


class Node:
    """The programs of one node. Single-threaded: a request is answered before the next one is read."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._pids: dict[str, int] = {}
        self._codes: dict[str, int] = {}
        self._keeps = False
        self._dismissed: set[str] = set()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if name := request.get("start"):
            return self._start(name)
        if request.get("keep"):
            self._keeps = True
            return {}
        if name := request.get("signal"):
            self._dismissed.add(name)
            if name in self._pids:
                os.kill(self._pids[name], request["number"])
            return {}
        if request.get("list"):
            return {"programs": {name: self._codes.get(name) for name in [*self._pids, *self._codes]}}
        if url := request.get("answers"):
            return {"answers": _answers(url)}
        if request.get("exit"):
            os._exit(0)
        return {"error": f"unknown request {request}"}

    def reap(self) -> None:
        """Collect whatever ended: programs, and processes that lost their parent (containerd's shims)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name in [name for name, known in self._pids.items() if known == pid]:
                self._codes[name] = os.waitstatus_to_exitcode(status)
                del self._pids[name]

    def revive(self) -> None:
        """Start again what ended by itself. (The controller manager gives up when its API server restarts.)"""
        for name in set(self._codes) - self._dismissed if self._keeps else ():
            print(f"{name} ended with {self._codes[name]}; starting it again", flush=True)
            self._start(name)

    def _start(self, name: str) -> dict[str, Any]:
        if name in self._pids:
            return {}
        self._dismissed.discard(name)
        argv = json.loads((self._state / "programs" / f"{name}.json").read_text())
        log = os.open(
            self._state / "logs" / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._pids[name] = os.posix_spawn(
                argv[0],
                argv,
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
        except OSError as error:
            return {"error": f"cannot start {argv[0]}: {error.strerror}"}
        finally:
            os.close(log)
            os.close(null)
        self._codes.pop(name, None)
        return {}


def prepare(state: Path) -> None:
    """Give the node directories of its own where programs insist on a fixed place."""
    for own, place in ((state / "run", "/run"), (state / "var-lib", "/var/lib"), (state / "logs" / "node", "/var/log")):
        subprocess.run(["mount", "--bind", str(own), place], check=True)
    # The kubelet wants mounts to be seen between the node and its containers; the host sees none of them.
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket.sethostname(HOSTNAME)
    for setting in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        path = Path("/proc/sys") / setting  # of this network namespace only
        if path.exists():  # no bridge module yet: then the setting starts as 1
            path.write_text("1")


def serve(state: Path) -> None:
    node = Node(state)
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listening = socket.socket(socket.AF_UNIX)
    path = state / "node.sock"
    path.unlink(missing_ok=True)
    os.umask(0o077)
    listening.bind(str(path))
    os.umask(0o022)
    listening.listen()
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        selector.register(listening, selectors.EVENT_READ)
        revived = time.monotonic()
        while True:
            for key, _ in selector.select(timeout=_RESTART_AFTER_S):
                if key.fileobj is woken:
                    woken.recv(4096)
                    node.reap()
                else:
                    _converse(node, listening)
            if time.monotonic() - revived >= _RESTART_AFTER_S:
                revived = time.monotonic()
                node.revive()


def _converse(node: Node, listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(_REQUEST_TIMEOUT_S)
        try:
            with connection.makefile("rw") as stream:
                if line := stream.readline():  # none: the caller only wanted to know who listens
                    stream.write(json.dumps(node.answer(json.loads(line))) + "\n")
        except Exception as error:
            # The init must outlive whatever a caller sends or leaves unsent: with it dies the cluster.
            print(f"request failed: {error!r}", flush=True)


def _answers(url: str) -> bool:
    """Whether it answers with 200. Programs sign their loopback certificates themselves: nothing to verify there."""
    trust = ssl._create_unverified_context() if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S, context=trust) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    home = Path(sys.argv[1])
    os.set_inheritable(int(sys.argv[2]), False)  # the node's lock: held by the node, not by its programs
    prepare(home)
    serve(home)

"""A home of its own with the real programs in it, a control plane that can be killed, and a look at what runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step

SCRIPTS = Path(sys.executable).parent
# No step takes more than 60 s on two idle cores (the first training makes its toy base, 25 s); this is for busy ones.
PATIENCE_S = 300
LOOK_S = 0.2
TAIL_LINES = 25


class Life:
    """One object, `feed`, in a home of its own."""

    key = "default/feed"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = LocalHome(root / "home")
        # The real HOME: the toy base is kept in the user's cache, once for this data.
        ours = {name: text for name, text in os.environ.items() if not name.startswith("RETRIEVAL_")}
        self.environment = ours | {
            "RETRIEVAL_OPERATOR_HOME": str(self.home.root),
            "RETRIEVAL_OPERATOR_LOG_FORMAT": "json",
            "RETRIEVAL_OPERATOR_LOG_LEVEL": "debug",  # a pass that finds nothing to do is told, too
        }
        self._controllers: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, expect: int = 0) -> str:
        """Run one of our programs as a user would. Returns its standard output."""
        done = subprocess.run(
            [str(SCRIPTS / command[0]), *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PATIENCE_S,
        )
        assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}\n{self.last_logs()}"
        return done.stdout

    def local(self, *arguments: str) -> str:
        return self.run("retrieval-operator", "local", *arguments)

    def start_controller(self) -> None:
        """`retrieval-operator local run`, each with a log of its own."""
        with self._log(len(self._controllers)).open("wb") as log:
            argv = [str(SCRIPTS / "retrieval-operator"), "local", "run"]
            self._controllers.append(subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log))

    def kill_controller(self) -> None:
        """SIGKILL: it cannot say goodbye to anybody."""
        self._controllers[-1].kill()
        self._controllers[-1].wait()

    def controller_ended_with(self) -> int:
        return int(self._controllers[-1].wait(PATIENCE_S))

    def passes(self) -> list[dict[str, Any]]:
        """What the running control plane has said about its passes so far: `step`, `actions`, `outcome` of each."""
        lines = self._log(len(self._controllers) - 1).read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in told if "actions" in line]

    def model(self) -> RetrievalModel:
        """The object with what the control plane wrote last."""
        found = asyncio.run(LocalModelStore(self.home).get(self.key))
        assert found is not None
        return found

    def wipe_status(self) -> None:
        self.home.status_file(self.key).unlink()

    def step(self) -> Step | None:
        """Where the candidate is; None when there is none."""
        candidate = self.model().status.candidate
        return candidate.step if candidate else None

    def attempts(self) -> list[Path]:
        """The directories of all workloads that were ever started; each has one log."""
        return sorted(self.home.workloads(self.key).glob("[!.]*"))

    def log_of(self, step: str) -> str:
        """The log of the step's one attempt, "" before it was started."""
        found = [path / "log" for path in self.attempts() if f"-{step}-" in path.name]
        assert len(found) <= 1, found
        return found[0].read_text() if found and found[0].exists() else ""

    def family(self, pattern: str) -> set[psutil.Process]:
        """The running process of the one directory below the home, with its supervisor; known by pid and start time."""
        (directory,) = self.home.root.glob(pattern)
        seen = Supervisor().observe(directory)
        assert seen is not None
        assert (seen.state, seen.starts) == ("Running", 1), f"{seen}\n{self.last_logs()}"
        supervisor = psutil.Process(seen.pid)
        return {supervisor, *supervisor.children()}

    def everything_that_runs(self) -> list[str]:
        """Processes that name this place in their command line or environment."""
        found = psutil.process_iter(["pid", "cmdline", "environ"])
        words = [(process.pid, process.info["cmdline"] or [], process.info["environ"] or {}) for process in found]
        place = str(self.root)
        return [f"{pid}: {' '.join(line)}" for pid, line, names in words if place in " ".join([*line, *names.values()])]

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for it. Fails with the last logs when it does not come, and at once when the control plane ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._controllers[-1].poll() is None, f"the control plane ended before {what}\n{self.last_logs()}"
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}\n{self.last_logs()}"
            time.sleep(LOOK_S)

    def last_logs(self) -> str:
        """The ends of the control plane's log and of the one that was written last."""
        others = sorted(self.home.root.rglob("log"), key=lambda path: path.stat().st_mtime)
        shown = [*sorted(self.root.glob("controller-*.log"))[-1:], *others[-1:]]
        return "\n".join(f"--- {path}\n" + "\n".join(_tail(path)) for path in shown)

    def end(self) -> None:
        """Whatever happened, nothing stays."""
        for controller in self._controllers:
            controller.kill()
            controller.wait()
        self.local("down", "--purge")

    def _log(self, number: int) -> Path:
        return self.root / f"controller-{number}.log"


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-TAIL_LINES:]


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    told = Life(tmp_path)
    yield told
    told.end()

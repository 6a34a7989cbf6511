from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import retrieval_operator
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.instance import HeldElsewhere, holder, sole_controller, stop_controller

HOLD = """
import sys, pathlib, signal
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.instance import sole_controller
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with sole_controller(LocalHome(pathlib.Path(sys.argv[1])), "another process"):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> LocalHome:
    return LocalHome(tmp_path / "home")


@pytest.fixture
def start_holder(home: LocalHome):
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": str(Path(retrieval_operator.__file__).parent.parent)}
        command = [sys.executable, "-c", HOLD, str(home.root), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_home_without_controller_has_no_holder_and_looking_makes_nothing(home: LocalHome) -> None:
    assert holder(home) is None
    assert not home.root.exists()


def test_the_holder_is_known_while_it_holds_and_not_after(home: LocalHome) -> None:
    with sole_controller(home, "a test"):
        found = holder(home)
        assert found is not None
        assert (found.pid, found.command) == (os.getpid(), "a test")
        with pytest.raises(HeldElsewhere, match=rf"process {os.getpid()} \(a test\)"), sole_controller(home, "me too"):
            pass
    assert holder(home) is None
    with sole_controller(home, "the next one"):
        pass


def test_a_killed_controller_holds_nothing(home: LocalHome, start_holder) -> None:
    process = start_holder()
    assert holder(home) is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder(home) is None


@pytest.mark.parametrize("options", [(), ("stubborn",)])
def test_a_controller_is_stopped_also_when_it_does_not_listen(home: LocalHome, start_holder, options) -> None:
    process = start_holder(*options)
    stopped = stop_controller(home, 0.3 if options else 10.0)
    assert stopped is not None
    assert stopped.pid == process.pid
    assert process.wait() == -(signal.SIGKILL if options else signal.SIGTERM)
    assert holder(home) is None


def test_stopping_where_nobody_runs_does_nothing(home: LocalHome) -> None:
    assert stop_controller(home, 0.1) is None

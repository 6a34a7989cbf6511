"""Real processes for the local adapter: small shell commands under the real wrapper."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_operator.adapters.local.processes import Command, Supervisor

# Generous: it only ends tests that fail.
TIMEOUT_S = 20.0


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """until(condition) is the first true value of the condition."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture
def shell() -> Callable[..., Command]:
    """shell("exit 3", deadline_s=1) is a command of /bin/sh."""

    def make(script: str, **fields: Any) -> Command:
        environment = {"PATH": "/usr/bin:/bin"} | fields.pop("environment", {})
        return Command(argv=["/bin/sh", "-c", script], environment=environment, **{"grace_s": 0.3, **fields})

    return make


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "process"


@pytest.fixture
def supervisor(tmp_path: Path) -> Any:
    """Whatever a test leaves running directly under its directory is ended after it."""
    supervisor = Supervisor()
    yield supervisor
    for path in tmp_path.glob("*/claim"):
        supervisor.stop(path.parent)

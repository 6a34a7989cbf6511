"""What .ci/run makes of what its targets do: the script itself, with a `make` that only notes and obeys."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "run"
LIMIT_S, SMOKE_S, API_S = 85 * 60, 33 * 60, 5 * 60
# $1 is the target; what it does is in a file of its name, if there is one.
MAKE = """#!/bin/bash
echo "$1" >> "$TARGETS"
script="$(dirname "$TARGETS")/does/$1"
if [ -e "$script" ]; then . "$script"; fi
"""
NOT_RUN = "echo 'not run: this root may not'; exit 2"

pytestmark = pytest.mark.skipif(not shutil.which("setsid"), reason="not run: .ci/run needs Linux")


@dataclass(frozen=True)
class Ended:
    code: int
    targets: list[str]
    said: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs it after so many seconds have gone, with targets (dashes as underscores) that do what these scripts say."""
    for name in ("checkout/.ci", "bin", "does"):
        (tmp_path / name).mkdir(parents=True)
    script = shutil.copy(SCRIPT, tmp_path / "checkout" / ".ci" / "run")
    for name, text in {"make": MAKE, **dict.fromkeys(("python3", "buildah", "mmdebstrap"), "#!/bin/sh\n")}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(gone_s: int = 0, **does: str) -> Ended:
        for target, text in does.items():
            (tmp_path / "does" / target.replace("_", "-")).write_text(text)
        targets = tmp_path / "targets"
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        # bash counts on from the SECONDS that it is given.
        environment = {**os.environ, "PATH": path, "TARGETS": str(targets), "SECONDS": str(gone_s)}
        ended = subprocess.run(
            [script], env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
        return Ended(ended.returncode, targets.read_text().split(), ended.stdout + ended.stderr)

    return run


def told(ended: Ended) -> list[str]:
    """The targets in their order but for smoke-prepare, which runs beside them."""
    return [target for target in ended.targets if target != "smoke-prepare"]


FIRST = ["environment", "lint", "types", "test", "cluster-build"]
SMOKE = ["cluster-up", "smoke", "cluster-down"]


def test_all_is_done_in_its_order(run: Run) -> None:
    ended = run()
    assert ended.code == 0, ended.said
    assert told(ended) == [*FIRST, "e2e-api", *SMOKE]
    assert "smoke-prepare" in ended.targets


@pytest.mark.parametrize("target", ["lint", "types", "test", "e2e_api", "smoke"])
def test_what_fails_is_a_failure(run: Run, target: str) -> None:
    assert run(**{target: "exit 2"}).code != 0


def test_a_machine_that_cannot_is_no_failure_and_is_told_as_not_run(run: Run) -> None:
    ended = run(smoke_prepare=NOT_RUN, cluster_build=NOT_RUN)
    assert ended.code == 0, ended.said
    assert told(ended) == [*FIRST, *SMOKE]
    assert "make e2e-api: NOT RUN: the programs it needs cannot be built here" in ended.said
    assert "not run: this root may not" in ended.said


def test_preparation_that_fails_is_a_failure(run: Run) -> None:
    ended = run(smoke_prepare="echo 'does not compile'; exit 2")
    assert ended.code == 1
    assert "smoke" not in ended.targets
    assert "does not compile" in ended.said


def test_preparation_that_hangs_is_a_failure_and_is_ended(run: Run, tmp_path: Path) -> None:
    last_words = tmp_path / "ended"
    os.mkfifo(last_words)
    reader = os.open(last_words, os.O_RDONLY | os.O_NONBLOCK)
    hung = f"echo building; trap 'echo ended > {last_words}; exit' TERM; sleep 600 & wait"
    ended = run(LIMIT_S - SMOKE_S - 2, smoke_prepare=hung)
    assert ended.code == 1
    assert "smoke" not in ended.targets
    assert "make smoke: NOT RUN: it needs 33 minutes, and 52 of 85 are gone" in ended.said
    assert "building" in ended.said
    assert select.select([reader], [], [], 10)[0], "it is not told to end"
    os.close(reader)


def test_programs_that_do_not_compile_are_a_failure_and_the_stories_are_told_all_the_same(run: Run) -> None:
    ended = run(cluster_build="echo 'failed: does not compile'; exit 2")
    assert ended.code == 1
    assert told(ended) == [*FIRST, *SMOKE]
    assert "make e2e-api: NOT RUN: building the programs it needs failed" in ended.said
    assert "failed: does not compile" in ended.said


def test_programs_that_are_late_are_a_failure_and_the_stories_are_told_all_the_same(run: Run) -> None:
    ended = run(LIMIT_S - SMOKE_S - API_S - 2, cluster_build="exec sleep 600")
    assert ended.code == 1
    assert told(ended)[-3:] == SMOKE
    assert "e2e-api" not in ended.targets
    assert "make e2e-api: NOT RUN: the programs it needs are not built after 47 minutes" in ended.said


def test_no_time_left_is_a_failure(run: Run) -> None:
    ended = run(LIMIT_S)
    assert ended.code == 1
    assert told(ended) == ["environment", "lint", "types", "test"]
    assert "make e2e-api: NOT RUN" in ended.said
    assert "make smoke: NOT RUN" in ended.said


def test_no_time_for_e2e_api_alone_is_one_too(run: Run) -> None:
    ended = run(LIMIT_S - SMOKE_S - API_S)
    assert ended.code == 1
    assert told(ended) == ["environment", "lint", "types", "test", *SMOKE]

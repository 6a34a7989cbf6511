"""Logs of processes are cut in place, so that those who write go on."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from retrieval_operator.adapters.local.logs import bound_logs


@pytest.mark.parametrize(
    "place",
    [
        "workloads/default/feed/feed-1-train-1",
        "stacks/default/feed/s-1/replica-0",
        "proxies/default/feed",
        "services/mlflow",
    ],
)
def test_a_large_log_is_cut_while_its_process_goes_on_writing(tmp_path: Path, place: str) -> None:
    log = tmp_path / place / "log"
    log.parent.mkdir(parents=True)
    with log.open("ab", buffering=0) as process:
        process.write(b"old\n" * 100)
        assert bound_logs(tmp_path, max_bytes=399) == [log]
        process.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    older = log.with_name("log.1")
    assert older.read_bytes() == b"old\n" * 100
    assert stat.S_IMODE(older.stat().st_mode) == 0o600
    assert bound_logs(tmp_path, max_bytes=399) == []


def test_a_small_log_and_other_files_are_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "services" / "mlflow"
    directory.mkdir(parents=True)
    (directory / "log").write_text("few")
    (directory / "spec.json").write_text("x" * 1000)
    assert bound_logs(tmp_path, max_bytes=3) == []
    assert sorted(path.name for path in directory.iterdir()) == ["log", "spec.json"]


def test_a_log_that_cannot_be_copied_is_left_to_the_next_time(tmp_path: Path) -> None:
    log = tmp_path / "services" / "mlflow" / "log"
    log.parent.mkdir(parents=True)
    log.write_text("x" * 1000)
    log.with_name("log.1").mkdir()
    assert bound_logs(tmp_path, max_bytes=3) == []
    assert log.stat().st_size == 1000

"""The control plane's own log file: bounded, and never in the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from retrieval_operator.telemetry import RotatingLog, configure_logging


def test_a_full_log_becomes_the_older_one_and_two_are_all_there_ever_is(tmp_path: Path) -> None:
    path = tmp_path / "controller.log"
    with RotatingLog(path, max_bytes=1000) as stream:
        configure_logging("json", "info", stream)
        for number in range(100):
            structlog.get_logger().info("100 % of it", number=number)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["controller.log", "controller.log.1"]
    assert all(found.stat().st_size <= 1000 for found in tmp_path.iterdir())
    lines = path.read_text().splitlines()
    assert '"event": "100 % of it"' in lines[-1]
    assert '"number": 99' in lines[-1]


def test_what_the_last_control_plane_wrote_is_kept_as_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "controller.log"
    path.write_text("before\n")
    with RotatingLog(path) as stream:
        stream.write("now\n")
    assert (path.read_text(), path.with_name("controller.log.1").read_text()) == ("now\n", "before\n")


def test_a_log_that_cannot_be_written_raises_nothing(tmp_path: Path, capfd) -> None:
    path = tmp_path / "logs" / "controller.log"
    path.parent.mkdir()
    with RotatingLog(path, max_bytes=10) as stream:
        stream.write("first line\n")
        shutil.rmtree(path.parent)
        stream.write("a line that asks for another file\n")
    assert capfd.readouterr().err == ""

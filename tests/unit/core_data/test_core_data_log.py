"""Logs name what happened; what users stored does not get into them, not even through a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from retrieval_core.log import configure_logging, get_logger
configure_logging()
def work(member_text):
    raise RuntimeError("it failed")
try:
    work("a very " + "private headline")
except RuntimeError:
    get_logger("test").exception("request failed")
"""


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_traceback_in_the_log_has_no_local_variables(format_: str) -> None:
    environment = {"RETRIEVAL_LOG_FORMAT": format_, "PYTHONPATH": "core"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "it failed" in done.stderr
    assert "a very private headline" not in done.stderr

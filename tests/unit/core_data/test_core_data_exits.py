"""Each kind of failure has its exit code, its sentence on stderr, and its entry in the termination log."""

from __future__ import annotations

import errno
import json

import pytest
import structlog

from retrieval_core import errors, exits
from retrieval_core.log import configure_logging, get_logger

EXPECTED = {
    errors.BadArguments("x"): (2, "BadArguments"),
    errors.BadInput("x"): (65, "BadInput"),
    errors.Diverged("x"): (69, "Diverged"),
    errors.StorageFailed("x"): (74, "StorageFailed"),
    errors.TemporarilyUnavailable("x"): (75, "TemporarilyUnavailable"),
    OSError(errno.ENOSPC, "x"): (74, "StorageFailed"),
    OSError(errno.EIO, "x"): (74, "StorageFailed"),
    RuntimeError("I/O error: No space left on device (os error 28)"): (74, "StorageFailed"),
}


@pytest.mark.parametrize("error", EXPECTED, ids=repr)
def test_an_expected_failure_exits_with_its_code_and_without_a_traceback(error, tmp_path, monkeypatch, capsys):
    code, reason = EXPECTED[error]
    log = tmp_path / "termination"
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(log))
    with pytest.raises(SystemExit) as caught, exits.exit_with_reason():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err == f"{reason}: {error}\n"
    assert json.loads(log.read_text()) == {"reason": reason, "message": str(error)}


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), FileNotFoundError(errno.ENOENT, "x"), KeyError("x")], ids=repr
)
def test_a_defect_keeps_its_traceback_and_is_recorded_as_a_crash(error, tmp_path, monkeypatch):
    log = tmp_path / "termination"
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(log))
    with pytest.raises(type(error)), exits.exit_with_reason():
        raise error
    assert json.loads(log.read_text())["reason"] == "Crashed"


@pytest.mark.parametrize("leaving", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_leaving_on_purpose_is_not_a_failure(leaving, tmp_path, monkeypatch):
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(tmp_path / "termination"))
    with pytest.raises(type(leaving)), exits.exit_with_reason():
        raise leaving
    assert [path.name for path in tmp_path.iterdir()] == []


def test_it_decorates_a_command_and_success_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(tmp_path / "termination"))

    @exits.exit_with_reason()
    def command(value: int) -> int:
        return value + 1

    assert command(1) == 2
    assert command(2) == 3  # a decorator is used more than once
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_termination_log_that_cannot_be_written_does_not_hide_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(SystemExit) as caught, exits.exit_with_reason():
        raise errors.BadInput("the reason")
    assert caught.value.code == exits.BAD_INPUT
    assert "BadInput: the reason" in capsys.readouterr().err


@pytest.mark.parametrize("message", ["é", "\n", '"'], ids=repr)
def test_a_long_message_fits_the_kubelets_limit(message, tmp_path, monkeypatch):
    log = tmp_path / "termination"
    monkeypatch.setenv(exits.TERMINATION_LOG_VARIABLE, str(log))
    exits.write_termination_log("BadInput", message * 10_000)
    assert len(log.read_bytes()) <= 4096
    assert json.loads(log.read_text())["message"].startswith(message * 100)


def test_the_codes_are_those_of_the_contract():
    codes = (exits.OK, exits.BAD_ARGUMENTS, exits.BAD_INPUT, exits.DIVERGED, exits.STORAGE_FAILED)
    assert (*codes, exits.TEMPORARILY_UNAVAILABLE) == (0, 2, 65, 69, 74, 75)


@pytest.fixture
def restored_logging():
    yield
    structlog.reset_defaults()


def test_logs_are_json_for_machines(monkeypatch, capsys, restored_logging):
    monkeypatch.setenv("RETRIEVAL_LOG_FORMAT", "json")
    configure_logging()
    get_logger("a.module").info("encoded", items=3)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["event"], entry["items"], entry["level"], entry["module"]) == ("encoded", 3, "info", "a.module")


def test_an_unknown_log_format_is_a_bad_argument(monkeypatch):
    monkeypatch.setenv("RETRIEVAL_LOG_FORMAT", "xml")
    with pytest.raises(errors.BadArguments, match="RETRIEVAL_LOG_FORMAT is 'xml', expected console or json"):
        configure_logging()

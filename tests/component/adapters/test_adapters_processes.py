"""Supervised processes: started at most once whoever is killed when, found again, never left behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from retrieval_operator.adapters.local import wrapper
from retrieval_operator.adapters.local.processes import Restarts, Supervisor
from retrieval_operator.ports import Retryable

pytestmark = pytest.mark.component

KILLED_WRAPPER = Path(__file__).with_name("killed_wrapper.py")
STARTER_BOUNDARIES = {"os.mkdir", "os.rename", "os.remove", "open", "fcntl.flock", "subprocess.Popen"}


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def killed_in_a_fork(function, kill_at):
    """Run the function in a fork that is killed before its N-th operation that others can see; whether it was."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event, _arguments):
            nonlocal count
            count += event in STARTER_BOUNDARIES
            if event in STARTER_BOUNDARIES and count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def ended(supervisor, directory, until):
    until(lambda: supervisor.observe(directory).state != "Running")
    return supervisor.observe(directory)


def test_a_starter_killed_at_any_boundary_leaves_a_command_that_runs_at_most_once(supervisor, tmp_path, shell, until):
    killed_at, outcomes = 0, set()
    while True:
        killed_at += 1
        directory, ran = tmp_path / f"process-{killed_at}", tmp_path / f"ran-{killed_at}"
        command = shell(f"echo ran >> {ran}")
        was_killed = killed_in_a_fork(lambda d=directory, c=command: supervisor.start(d, c), killed_at)
        supervisor.start(directory, command)
        found = ended(supervisor, directory, until)
        outcomes.add(found.state)
        assert len(lines(ran)) == (1 if found.state == "Exited" else 0), killed_at
        if not was_killed:
            break
    assert killed_at > 8  # the premise: there were boundaries
    assert outcomes == {"Exited", "Lost"}


def test_a_starter_killed_right_after_the_wrapper_started_changes_nothing(
    supervisor, directory, tmp_path, shell, until
):
    ran = tmp_path / "ran"
    command = shell(f"echo ran >> {ran}; sleep 0.1")
    real_run = subprocess.run

    def run_and_die(*arguments, **options):
        real_run(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    def start():
        subprocess.run = run_and_die
        supervisor.start(directory, command)

    assert killed_in_a_fork(start, kill_at=0)
    assert supervisor.start(directory, command) is False
    assert ended(supervisor, directory, until).exit.code == 0
    assert lines(ran) == ["ran"]


def test_a_wrapper_killed_at_any_boundary_leaves_nothing_running_and_a_definite_end(tmp_path, shell, until):
    killed_at, states = 0, []
    while not states or states[-1] != "Exited" or killed_at < 10:
        killed_at += 1
        directory, ran = tmp_path / f"process-{killed_at}", tmp_path / f"ran-{killed_at}"
        command = shell(f"echo ran >> {ran}; sleep 0.02")
        prefix = (sys.executable, "-I", "-S", str(KILLED_WRAPPER), str(killed_at), wrapper.__file__)
        with suppress(Retryable):  # killed before it had detached itself: known not to run
            Supervisor(prefix).start(directory, command)
        supervisor = Supervisor()
        supervisor.start(directory, command)
        state = ended(supervisor, directory, until).state
        supervisor.settle_lost(directory)
        states.append(state)
        found = supervisor.observe(directory)
        assert found.state == "Exited"
        assert found.exit.reason == ("Lost" if state == "Lost" else "")
        assert wrapper.marked_processes(str(directory)) == []
        assert len(lines(ran)) <= 1, killed_at
    assert states.count("Lost") >= 8  # the premise: there were boundaries


def test_a_killed_wrapper_is_seen_as_lost_and_its_orphans_are_killed(supervisor, directory, shell, until):
    # The grandchild has a session of its own, as torchrun's workers do: no signal to a group reaches it.
    supervisor.start(directory, shell("setsid sleep 60 & sleep 60"))
    until(lambda: len(wrapper.marked_processes(str(directory))) == 3)
    os.kill(supervisor.observe(directory).pid, signal.SIGKILL)
    until(lambda: supervisor.observe(directory).state == "Lost")
    assert len(wrapper.marked_processes(str(directory))) == 3
    supervisor.settle_lost(directory)
    assert wrapper.marked_processes(str(directory)) == []
    assert supervisor.observe(directory).exit.reason == "Lost"


def test_a_command_is_found_again_by_another_supervisor(directory, shell, until, supervisor):
    supervisor.start(directory, shell("sleep 60", record={"key": "abc"}))
    found = until(lambda: Supervisor().observe(directory))
    assert (found.state, found.record) == ("Running", {"key": "abc"})
    process = until(lambda: directory.joinpath("process.json").exists() and supervisor.observe(directory))
    assert json.loads((directory / "process.json").read_text())["start_time"] == wrapper.start_time(process.pid)
    assert os.getsid(process.pid) != os.getsid(0)


def test_the_end_is_recorded_with_code_message_and_last_lines(supervisor, directory, shell, until):
    script = """echo one; printf 'step 1\\rstep 2\\n' >&2
    printf '{"reason": "BadInput", "message": "no such column"}' > $RETRIEVAL_TERMINATION_LOG; exit 65"""
    supervisor.start(directory, shell(script))
    found = ended(supervisor, directory, until)
    assert (found.exit.code, found.exit.signal) == (65, None)
    assert (found.exit.reason, found.exit.message) == ("BadInput", "no such column")
    assert found.exit.last_lines == "one\nstep 2"
    assert found.exit.finished_at >= found.started_at > 0


@pytest.mark.parametrize("said", ["", "nonsense", "[1]", '{"reason": "x"}'])
def test_a_termination_message_that_cannot_be_read_is_no_message(supervisor, directory, shell, until, said):
    supervisor.start(directory, shell(f"printf '%s' '{said}' > $RETRIEVAL_TERMINATION_LOG; exit 1"))
    found = ended(supervisor, directory, until)
    assert (found.exit.code, found.exit.reason, found.exit.message) == (1, "", "")


def test_a_death_by_signal_is_recorded_as_one(supervisor, directory, shell, until):
    supervisor.start(directory, shell("kill -SEGV $$"))
    found = ended(supervisor, directory, until)
    assert (found.exit.code, found.exit.signal) == (None, signal.SIGSEGV)


def test_a_command_that_cannot_be_started_says_so(supervisor, directory, shell, until):
    command = shell("")
    supervisor.start(directory, type(command)(argv=["/no/such/program"], environment={}))
    found = ended(supervisor, directory, until)
    assert (found.exit.code, found.exit.reason) == (127, "CannotStart")
    assert "/no/such/program" in found.exit.message


def test_the_deadline_ends_a_command_that_ignores_term_and_all_its_children(supervisor, directory, shell, until):
    script = "trap '' TERM; setsid sleep 60 & while true; do sleep 0.05; done"
    supervisor.start(directory, shell(script, deadline_s=0.3, grace_s=0.1))
    found = ended(supervisor, directory, until)
    assert (found.exit.reason, found.exit.signal) == ("DeadlineExceeded", signal.SIGKILL)
    assert "deadline of 0.3 s" in found.exit.message
    assert wrapper.marked_processes(str(directory)) == []


def test_stop_lets_a_command_clean_up_within_the_grace(supervisor, directory, tmp_path, shell, until):
    saved = tmp_path / "saved"
    script = f"trap 'touch {saved}; exit 0' TERM; echo up; while true; do sleep 0.02; done"
    supervisor.start(directory, shell(script, grace_s=10))
    until(lambda: "up" in (directory / "log").read_text())
    supervisor.stop(directory)
    assert saved.exists()
    found = supervisor.observe(directory)
    assert (found.state, found.exit.code, found.exit.reason) == ("Exited", 0, "Stopped")


def test_stop_right_after_start_still_ends_it(supervisor, tmp_path, shell):
    for number in range(5):
        directory = tmp_path / f"process-{number}"
        supervisor.start(directory, shell("sleep 60"))
        supervisor.stop(directory)
        assert supervisor.observe(directory).exit.reason == "Stopped"
        assert wrapper.marked_processes(str(directory)) == []


def test_a_suspended_wrapper_is_stopped_all_the_same(supervisor, directory, shell, until, monkeypatch):
    monkeypatch.setattr("retrieval_operator.adapters.local.processes._STOP_MARGIN_S", 0.3)
    supervisor.start(directory, shell("sleep 60", grace_s=0.1))
    until(lambda: wrapper.marked_processes(str(directory)))
    os.kill(supervisor.observe(directory).pid, signal.SIGSTOP)
    supervisor.stop(directory)
    assert supervisor.observe(directory).exit.reason == "Stopped"
    assert wrapper.marked_processes(str(directory)) == []


def test_a_reused_pid_is_never_signalled(supervisor, directory, shell, until):
    """After a reboot the recorded pid may be anybody's."""
    bystander = subprocess.Popen(["/bin/sleep", "60"])
    try:
        supervisor.start(directory, shell("true"))
        ended(supervisor, directory, until)
        (directory / "exit.json").unlink()
        process = json.loads((directory / "process.json").read_text())
        (directory / "process.json").write_text(json.dumps({**process, "pid": bystander.pid, "child": bystander.pid}))
        supervisor.stop(directory)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_removing_a_running_command_ends_it_and_its_directory(supervisor, directory, shell, until):
    supervisor.start(directory, shell("sleep 60"))
    until(lambda: wrapper.marked_processes(str(directory)))
    supervisor.remove(directory)
    assert wrapper.marked_processes(str(directory)) == []
    assert not directory.exists()
    assert supervisor.observe(directory) is None
    supervisor.remove(directory)


def test_a_server_is_started_again_with_back_off_until_its_limit(supervisor, directory, tmp_path, shell, until):
    ran = tmp_path / "ran"
    command = shell(f"echo ran >> {ran}; exit 1", restarts=Restarts(limit=2, backoff_s=0.02))
    supervisor.start(directory, command)
    found = ended(supervisor, directory, until)
    assert (lines(ran), found.starts, found.exit.code) == (["ran"] * 3, 3, 1)


def test_a_final_exit_code_ends_a_server_at_once(supervisor, directory, shell, until):
    supervisor.start(directory, shell("exit 65", restarts=Restarts(backoff_s=0.02, final_codes=(65,))))
    assert ended(supervisor, directory, until).starts == 1


def test_a_healthy_run_resets_the_count_of_failures(supervisor, directory, tmp_path, shell, until):
    ran = tmp_path / "ran"
    policy = Restarts(limit=1, backoff_s=0.01, healthy_s=0.0)
    supervisor.start(directory, shell(f"echo ran >> {ran}; exit 1", restarts=policy))
    until(lambda: len(lines(ran)) >= 4)


def test_restart_runs_an_ended_server_again_but_never_a_running_one(supervisor, directory, shell, until):
    supervisor.start(directory, shell("exit 1"))
    ended(supervisor, directory, until)
    assert supervisor.restart(directory, shell("sleep 60")) is True
    assert supervisor.observe(directory).state == "Running"
    assert supervisor.restart(directory, shell("sleep 60")) is False


def test_the_directory_is_private_and_holds_no_value_of_the_environment(supervisor, directory, shell, until):
    supervisor.start(directory, shell("true", environment={"TOKEN": "secret-5f1c"}))
    ended(supervisor, directory, until)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert "secret-5f1c" not in path.read_text(), path
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_command_does_not_inherit_the_lock(supervisor, directory, shell, until):
    """Otherwise a daemon left by a program would keep it Running for ever."""
    supervisor.start(directory, shell("ls -l /proc/self/fd"))
    assert "lock" not in ended(supervisor, directory, until).exit.last_lines


def test_a_disk_that_fills_up_meanwhile_delays_the_record_of_the_end(supervisor, directory, tmp_path, shell, until):
    go = tmp_path / "go"
    supervisor.start(directory, shell(f"while [ ! -e {go} ]; do sleep 0.01; done; exit 3"))
    until(lambda: wrapper.marked_processes(str(directory)))
    obstacle = directory / "exit.json.new"
    obstacle.mkdir()  # makes the write fail, as a full disk would
    go.touch()
    until(lambda: "cannot record the end" in (directory / "log").read_text())
    assert supervisor.observe(directory).state == "Running"
    obstacle.rmdir()
    assert ended(supervisor, directory, until).exit.code == 3


def test_a_command_keeps_the_umask_of_whoever_runs_the_control_plane(supervisor, directory, shell, until):
    previous = os.umask(0o027)
    try:
        supervisor.start(directory, shell("umask"))
    finally:
        os.umask(previous)
    assert ended(supervisor, directory, until).exit.last_lines == "0027"

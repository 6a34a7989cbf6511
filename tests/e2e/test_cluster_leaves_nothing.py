"""Whatever becomes of a cluster, `down` leaves the machine as it was. These have addresses of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from native_cluster import leftovers, prerequisites
from native_cluster.binaries import Binaries
from native_cluster.cli import NOT_RUN
from native_cluster.cluster import Cluster
from native_cluster.layout import ClusterError, Layout, NotRun, default_cache
from native_cluster.node_client import NodeClient, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

E2E = Path(__file__).parent
NETWORK = 98
COMMAND_TIMEOUT_S = 300
RECOVERY_TIMEOUT_S = 60

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", NETWORK)


def arguments(layout: Layout, command: str, *options: str) -> list[str]:
    addresses = [f"--network={layout.network}"] if command == "up" else []
    return [sys.executable, "-m", "native_cluster", command, f"--state={layout.state}", *addresses, *options]


def native_cluster(layout: Layout, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(layout, command, *options),
        cwd=E2E,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def command(layout: Layout) -> Iterator[Command]:
    """Run a command on a cluster of this test's own; not run where the machine cannot. Afterwards nothing is left."""
    try:
        prerequisites.check_machine(layout)
        prerequisites.check_prepared(Binaries(default_cache()))
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")
    before = leftovers.snapshot(layout)

    def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return native_cluster(layout, name, *options)

    yield run
    ended = run("down")
    assert ended.returncode == 0, ended.stderr
    assert leftovers.differences(before, leftovers.snapshot(layout)) == []


UP = ("up", "--no-controllers", "--no-prepare")


@pytest.mark.parametrize("step", ["keys and configuration", "namespaces and network", "etcd", "kubelet", "node ready"])
def test_an_up_that_is_killed_leaves_nothing_after_down(layout: Layout, command: Command, step: str) -> None:
    with subprocess.Popen(
        arguments(layout, *UP),
        cwd=E2E,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as starting:
        assert starting.stdout
        seen = []
        for line in starting.stdout:
            seen.append(line)
            if line.strip().startswith(step):
                starting.send_signal(signal.SIGKILL)
                break
    assert starting.returncode == -signal.SIGKILL, "".join(seen)


def test_a_cluster_whose_node_dies_is_started_anew_by_the_next_up(layout: Layout, command: Command) -> None:
    assert command(*UP).returncode == 0
    os.kill(NodeClient(layout).pid(), signal.SIGKILL)
    assert "the cluster is up" not in command("status").stdout
    again = command(*UP)
    assert again.returncode == 0, again.stderr
    assert "the cluster runs" not in again.stdout
    assert "the cluster runs" in command(*UP).stdout


def test_a_restarted_api_server_still_knows_what_it_was_told(layout: Layout, command: Command) -> None:
    assert command(*UP).returncode == 0
    restarted = command("restart", "kube-apiserver")
    assert restarted.returncode == 0, restarted.stderr
    recovered = "the cluster is up after the restart"  # the controller manager ends with its API server, and comes back
    until(lambda: command("status").returncode == 0, RECOVERY_TIMEOUT_S, recovered)


def test_a_second_cluster_on_the_same_addresses_is_refused_and_harms_nobody(layout: Layout, command: Command) -> None:
    assert command(*UP).returncode == 0
    other = Layout(layout.state.with_name("other"), layout.network)
    refused = native_cluster(other, *UP)
    assert refused.returncode == NOT_RUN
    assert "choose others with --network" in refused.stderr
    assert "the cluster is up" in command("status").stdout


def test_a_start_that_fails_says_which_program_keeps_the_logs_and_leaves_nothing_else(
    layout: Layout, command: Command, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in Binaries(default_cache()).directory.iterdir():
        (programs / program.name).symlink_to("/bin/false" if program.name == "kube-scheduler" else program)
    with pytest.raises(ClusterError, match="kube-scheduler ended with 1") as failed:
        Cluster(layout, programs, print).up(None)
    assert failed.value.log == layout.log("kube-scheduler")
    assert layout.log("kube-apiserver").stat().st_size > 0
    assert {path.name for path in layout.state.iterdir()} == {"logs", "command.lock"}

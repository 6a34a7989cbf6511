"""A cluster for a run of tests: who ends it, and what is compared when it has ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from native_cluster import leftovers
from native_cluster.layout import Layout
from native_cluster.lending import Run, lent


class Commands:
    """Instead of native_cluster: `runs` before, and `interrupted` is the command during which Ctrl-C is pressed."""

    def __init__(self, *, runs: bool = False, up: int = 0, interrupted: str = "") -> None:
        self.run: list[str] = []
        self._codes = {"status": 0 if runs else 1, "up": up, "down": 0}
        self._interrupted = interrupted

    def __call__(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        self.run.append(command)
        if command == self._interrupted:
            self._interrupted = ""
            raise KeyboardInterrupt
        return subprocess.CompletedProcess([command], self._codes[command], "", "")


def use(run: Run) -> int:
    with lent(run) as started:
        return started.returncode


def test_one_that_was_started_is_ended() -> None:
    commands = Commands()
    assert use(commands) == 0
    assert commands.run == ["status", "up", "down"]


def test_one_that_ran_before_is_left() -> None:
    commands = Commands(runs=True)
    use(commands)
    assert commands.run == ["status", "up"]


def test_one_that_did_not_start_has_ended_itself() -> None:
    commands = Commands(up=3)
    assert use(commands) == 3
    assert commands.run == ["status", "up"]


def test_a_start_that_is_interrupted_is_undone() -> None:
    commands = Commands(interrupted="up")
    with pytest.raises(KeyboardInterrupt):
        use(commands)
    assert commands.run == ["status", "up", "down"]


def test_an_interrupted_start_of_one_that_ran_before_ends_nothing() -> None:
    commands = Commands(runs=True, interrupted="up")
    with pytest.raises(KeyboardInterrupt):
        use(commands)
    assert commands.run == ["status", "up"]


def test_an_end_that_is_interrupted_is_done_again() -> None:
    commands = Commands(interrupted="down")
    with pytest.raises(KeyboardInterrupt):
        use(commands)
    assert commands.run == ["status", "up", "down", "down"]


def test_what_fails_while_it_is_used_ends_it() -> None:
    commands = Commands()
    with pytest.raises(ZeroDivisionError), lent(commands):
        raise ZeroDivisionError
    assert commands.run == ["status", "up", "down"]


LAYOUT = Layout(Path("/srv/cluster"), 77)
KINDS = (
    *("mounts", "links", "routes", "iptables rules", "named network namespaces", "cgroups"),
    *("kernel settings", "namespaces", "processes", "files"),
)
NOTHING: leftovers.Found = dict.fromkeys(KINDS, frozenset())


def left(**more: set[str]) -> list[str]:
    """What a comparison of the cluster's own says of these, by kind (spaces as underscores), that came meanwhile."""
    after = NOTHING | {kind.replace("_", " "): frozenset(names) for kind, names in more.items()}
    namespaces = frozenset({"net:[77]"})
    return leftovers.differences(leftovers.own(NOTHING, LAYOUT), leftovers.own(after, LAYOUT, namespaces))


def test_what_others_started_meanwhile_is_not_told() -> None:
    assert not left(
        mounts={"/var/lib/docker/overlay2/1/merged", "/srv/cluster-of-others"},
        links={"docker0", "rocluster98"},
        routes={"172.17.0.0/16 dev docker0", "10.98.0.0/16 via 10.98.0.1 dev rocluster98"},
        iptables_rules={"-A FORWARD -o docker0 -j DOCKER"},
        named_network_namespaces={"somebody"},
        cgroups={"/sys/fs/cgroup/system.slice/later.service", "/sys/fs/cgroup/retrieval-cluster-98"},
        kernel_settings={"/proc/sys/net/ipv4/ip_forward = 1"},
        namespaces={"net:[5]"},
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mounts", "/srv/cluster/run/containerd"),
        ("links", "rocluster77"),
        ("routes", "10.77.0.0/16 via 10.77.0.1 dev rocluster77"),
        ("iptables_rules", "-A KUBE-SVC -d 10.77.128.1/32 -j KUBE-SEP"),
        ("cgroups", "/sys/fs/cgroup/memory/retrieval-cluster-77"),
        ("kernel_settings", "/proc/sys/kernel/panic = 10"),
        ("namespaces", "net:[77]"),
        ("processes", "17 unshare /srv/cluster"),
        ("files", "claim.json"),
    ],
)
def test_what_is_the_clusters_own_is_told(kind: str, name: str) -> None:
    [told] = left(**{kind: {name}})
    assert name in told


def test_the_logs_stay() -> None:
    assert not left(files={"logs", "command.lock"})


def test_a_process_has_the_namespaces_that_a_snapshot_tells() -> None:
    if not Path("/proc/self/ns/net").exists():
        pytest.skip("not run: this is not Linux")
    assert len(leftovers.namespaces_of(os.getpid())) == 2
    assert leftovers.namespaces_of(os.getpid()) <= leftovers._namespaces()

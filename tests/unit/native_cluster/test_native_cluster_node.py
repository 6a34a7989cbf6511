"""The init of the node, outside its namespaces: it starts, reaps, revives, and survives whatever it is asked."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_cluster import node
from native_cluster.layout import ClusterError, Layout
from native_cluster.node_client import NodeClient, locked, until

pytestmark = pytest.mark.component

SERVE = f"import sys; sys.path.insert(0, {str(Path(node.__file__).parent)!r}); import node; "
SERVE += "from pathlib import Path; node.serve(Path(sys.argv[1]))"
TIMEOUT_S = 20


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for directory in (layout.programs, layout.logs):
        directory.mkdir()
    return layout


@pytest.fixture
def client(layout: Layout) -> Iterator[NodeClient]:
    """Of a node that serves in a process of its own, without namespaces: those need root."""
    with subprocess.Popen([sys.executable, "-c", SERVE, str(layout.state)]) as process:
        client = NodeClient(layout)
        until(client.answers, TIMEOUT_S, "the node")
        yield client
        process.kill()


def write_program(layout: Layout, name: str, script: str) -> None:
    (layout.programs / f"{name}.json").write_text(json.dumps(["/bin/sh", "-c", script]))


def test_a_program_runs_with_its_output_in_its_log_until_it_is_signalled(layout: Layout, client: NodeClient) -> None:
    write_program(layout, "sleeper", "echo hello; exec sleep 60")
    client.start("sleeper")
    until(lambda: "hello" in layout.log("sleeper").read_text(), TIMEOUT_S, "its output")
    assert client.programs() == {"sleeper": None}
    client.signal("sleeper", signal.SIGTERM)
    until(lambda: client.programs() == {"sleeper": -signal.SIGTERM}, TIMEOUT_S, "its end")


def test_starting_a_program_that_runs_does_nothing(layout: Layout, client: NodeClient) -> None:
    write_program(layout, "once", "echo started; exec sleep 60")
    for _ in range(3):
        client.start("once")
    until(lambda: "started" in layout.log("once").read_text(), TIMEOUT_S, "its output")
    assert layout.log("once").read_text() == "started\n"
    client.signal("once", signal.SIGKILL)


def test_what_ends_by_itself_is_started_again_only_once_it_is_to_be_kept(layout: Layout, client: NodeClient) -> None:
    write_program(layout, "short", "echo started; exit 3")
    client.start("short")
    until(lambda: client.programs() == {"short": 3}, TIMEOUT_S, "its end")
    assert layout.log("short").read_text() == "started\n"
    client.keep()
    until(lambda: layout.log("short").read_text().count("started") >= 2, TIMEOUT_S, "its second start")


def test_what_was_stopped_on_purpose_stays_stopped_beside_one_that_is_revived(
    layout: Layout, client: NodeClient
) -> None:
    write_program(layout, "stopped", "echo started; exec sleep 60")
    write_program(layout, "short", "echo started")
    client.keep()
    client.start("stopped")
    client.signal("stopped", signal.SIGKILL)
    client.start("short")
    until(lambda: layout.log("short").read_text().count("started") >= 3, TIMEOUT_S, "two revivals of the other")
    assert (client.programs() or {})["stopped"] == -signal.SIGKILL


def test_a_program_that_is_not_there_is_an_error_that_names_it(layout: Layout, client: NodeClient) -> None:
    (layout.programs / "ghost.json").write_text('["/nonexistent/ghost"]')
    with pytest.raises(ClusterError, match="/nonexistent/ghost"):
        client.start("ghost")


@pytest.mark.parametrize("sent", [b"", b"not json\n", b"[]\n", b'{"start": "unknown"}\n', b'{"what": 1}\n'])
def test_the_node_outlives_whatever_is_sent(layout: Layout, client: NodeClient, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(layout.node_socket))
        connection.sendall(sent)
    assert client.programs() == {}


def test_the_kernel_says_which_process_serves(client: NodeClient) -> None:
    assert "serve" in Path(f"/proc/{client.pid()}/cmdline").read_text()


def test_a_lock_is_refused_while_somebody_holds_it_and_free_afterwards(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(ClusterError, match="wait for it"),
        locked(tmp_path / "lock", busy="wait for it"),
    ):
        pytest.fail("taken twice")
    with locked(tmp_path / "lock") as descriptor:
        assert descriptor > 2

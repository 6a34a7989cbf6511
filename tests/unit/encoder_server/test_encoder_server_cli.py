"""Flags, environment, and the port."""

from __future__ import annotations

import re
import socket
import sys

import pytest
from typer.testing import CliRunner

from retrieval_core.errors import BadArguments, TemporarilyUnavailable
from retrieval_encoder_server import cli
from retrieval_encoder_server.listening import accept_waiting, bind, listen, stop_handshakes
from retrieval_encoder_server.settings import Settings


@pytest.fixture
def started(monkeypatch) -> list[Settings]:
    """What the server would have been started with."""
    started: list[Settings] = []
    monkeypatch.setattr(cli, "run", started.append)
    return started


def invoke(*arguments: str, **environment: str):
    return CliRunner().invoke(cli.app, list(arguments), env=environment)


def test_every_setting_is_a_flag_and_an_environment_variable(golden):
    result = CliRunner().invoke(cli.app, ["--help"], prog_name="retrieval-encoder-server")
    assert result.exit_code == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in result.output
        assert name.upper() in result.output
    golden("encoder_server/help.txt", result.output)


@pytest.mark.parametrize("by", ["flags", "environment"])
def test_flags_and_environment_say_the_same(started, by):
    given = {
        "bundle_uri": "/b",
        "generation_uri": "/g",
        "expected_bundle_id": "b-0123456789abcdef",
        "expected_generation_id": "g-0123456789abcdef",
        "model_name": "feed",
        "host": "0.0.0.0",
        "port": "9000",
        "grpc_port": "9001",
        "connection_age_seconds": "30",
        "drain_seconds": "0",
        "served_dimension": "64",
    }
    if by == "flags":
        result = invoke(*[part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)])
    else:
        result = invoke(**{name.upper(): value for name, value in given.items()})
    assert result.exit_code == 0, result.output
    assert started == [Settings(**given)]


def test_a_flag_wins_over_the_environment(started):
    invoke("--bundle-uri", "/flag", BUNDLE_URI="/environment")
    assert started[0].bundle_uri == "/flag"


def test_an_empty_variable_is_one_that_is_not_set(started):
    invoke(BUNDLE_URI="/b", GENERATION_URI="", EXPECTED_BUNDLE_ID="")
    assert (started[0].generation_uri, started[0].expected_bundle_id) == (None, None)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "--bundle-uri (BUNDLE_URI): missing, it is required"),
        ({"PORT": "70000"}, "--port (PORT): found 70000, expected less than or equal to 65535"),
        ({"PORT": "9000", "GRPC_PORT": "9000"}, "--grpc-port (GRPC_PORT): found 9000, which is PORT; expected another"),
        ({"EXPECTED_BUNDLE_ID": "7"}, "--expected-bundle-id (EXPECTED_BUNDLE_ID): found '7'"),
        ({"CONNECTION_AGE_SECONDS": "0"}, "--connection-age-seconds (CONNECTION_AGE_SECONDS): found 0"),
        ({"CONNECTION_AGE_SECONDS": "inf"}, "--connection-age-seconds (CONNECTION_AGE_SECONDS): found inf"),
        ({"MODEL_NAME": "a/b"}, "--model-name (MODEL_NAME): found 'a/b'"),
        ({"RETRIEVAL_LOG_FORMAT": "xml"}, "RETRIEVAL_LOG_FORMAT is 'xml', expected console or json"),
    ],
)
def test_wrong_settings_exit_with_2_and_name_flag_and_variable(started, environment, sentence):
    bundle = {} if not environment else {"BUNDLE_URI": "/b"}
    result = invoke(**{**bundle, **environment})
    assert result.exit_code == 2
    assert sentence in re.sub(r"\s+", " ", result.stderr)
    assert not started


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TemporarilyUnavailable, match=f"port {port} of 127.0.0.1 is in use by another process"):
            bind("127.0.0.1", port)


def test_of_two_servers_that_claimed_one_port_the_second_to_be_ready_says_so():
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(TemporarilyUnavailable, match="is in use"):
            listen(second)


def test_a_claimed_port_refuses_connections_until_it_listens():
    with bind("127.0.0.1", 0) as claimed:
        address = claimed.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        listen(claimed)
        socket.create_connection(address, timeout=5).close()


@pytest.mark.parametrize(
    ("host", "message"), [("no such host", "is not an address"), ("192.0.2.1", "cannot listen on")]
)
def test_an_address_this_machine_has_not_is_a_bad_argument(host, message):
    with pytest.raises(BadArguments, match=message):
        bind(host, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel filter is Linux's")
def test_a_closing_socket_keeps_who_has_connected_and_ignores_who_has_not():
    """Ignored, not reset: a client that asks again finds the port closed before it has sent a request."""
    with bind("127.0.0.1", 0) as listener:
        listen(listener)
        listener.setblocking(False)
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5) as early:
            stop_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            (accepted,) = accept_waiting(listener)
            listener.close()
            with accepted:
                early.sendall(b"request")
                assert accepted.recv(7) == b"request"
                accepted.sendall(b"answer")
            assert early.recv(6) == b"answer"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)

"""How a server process starts, refuses to start, and stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter

import httpx
import pytest

pytestmark = pytest.mark.component


def test_an_unexpected_bundle_ends_the_process_with_65_before_it_listens(spawn, stack, tmp_path):
    termination_log = tmp_path / "termination"
    process = spawn(expected_bundle_id="b-ffffffffffffffff", retrieval_termination_log=termination_log)
    assert process.exit_code() == 65
    assert f"bundle {stack.bundle.id}, expected b-ffffffffffffffff" in process.text
    assert "Traceback" not in process.text
    assert json.loads(termination_log.read_text())["reason"] == "BadInput"


def test_a_port_in_use_is_said_before_anything_is_loaded(spawn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = spawn(port=taken.getsockname()[1])
        assert process.exit_code() == 75
    assert "is in use by another process; stop that process, or choose another PORT" in process.text
    assert not [line for line in process.log if line["event"] == "bundle verified"]


def test_a_body_too_large_is_answered_before_the_connection_is_reset(served):
    response = served.post("/v1/embeddings", content=b"x" * (6 * 2**20))
    assert response.status_code == 413
    assert served.get("/v2/health/ready").status_code == 200


def test_a_prompt_of_megabytes_is_refused_by_its_length(served):
    """With a real tokenizer; what it would have cost to tokenise it is not a matter of this test."""
    response = served.post("/v1/embeddings", json={"input": "coffee " * 250_000})
    assert response.status_code == 413
    assert "the prompt has 1750000 characters, more than the 80 tokens" in response.json()["error"]["message"]


def end_of_a_connection_comes_with_a_response(url: httpx.URL) -> None:
    """A socket by hand, because a client library would hide the end of a connection."""
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        stream = connection.makefile("rb")
        answers = 0
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            connection.sendall(b"GET /v1/ids HTTP/1.1\r\nHost: test\r\n\r\n")
            headers = read_response(stream)
            answers += 1
            if headers.get("connection") == "close":
                break
        assert headers.get("connection") == "close"
        assert answers > 1, "it was kept while it was young"
        assert stream.read(1) == b"", "an orderly end, not a reset"


def read_response(stream) -> dict[str, str]:
    assert stream.readline().startswith(b"HTTP/1.1 200")
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    assert len(stream.read(int(headers["content-length"]))) == int(headers["content-length"])
    return headers


class Caller(threading.Thread):
    """Asks without a pause until the server refuses connections; each request is one of the outcomes it counts."""

    def __init__(self, url: str, *, keep_alive: bool) -> None:
        super().__init__(daemon=True)
        self.url, self.keep_alive = url, keep_alive
        self.outcomes: Counter[str] = Counter()
        self.after_term: Counter[str] = Counter()
        self.term_sent = threading.Event()

    def run(self) -> None:
        client = httpx.Client(timeout=30)
        while True:
            try:
                outcome = self._ask(client)
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                outcome = f"{type(error).__name__}: {error}"
            self.outcomes[outcome] += 1
            if self.term_sent.is_set():
                self.after_term[outcome] += 1

    def _ask(self, client: httpx.Client) -> str:
        if not self.keep_alive:
            client.close()
            client = httpx.Client(timeout=30)
        body = {"member": {"headline": "data"}, "k": 5}
        response = client.post(f"{self.url}/v1/retrieve", json=body)
        return str(response.status_code)


def test_no_request_fails_while_connections_age_and_the_server_drains(spawn):
    process = spawn(connection_age_seconds=1.5, drain_seconds=2)
    url = process.url
    end_of_a_connection_comes_with_a_response(httpx.URL(url))
    callers = [Caller(url, keep_alive=keep_alive) for keep_alive in (True, True, False, False)]
    for caller in callers:
        caller.start()
    while not all(caller.outcomes["200"] >= 5 for caller in callers):
        assert all(caller.is_alive() for caller in callers)
        threading.Event().wait(0.01)
    for caller in callers:
        caller.term_sent.set()
    term_at = time.monotonic()
    process.term()
    with httpx.Client() as probe:
        process.wait_for("draining")
        ready = probe.get(f"{url}/v2/health/ready")
        live = probe.get(f"{url}/v2/health/live")
    assert (ready.status_code, live.status_code) == (503, 200), "readiness goes first"
    assert ready.headers["connection"] == "close"
    process.term()
    assert process.exit_code() == 0
    assert time.monotonic() - term_at >= 2, "the drain takes its whole time, and a second TERM does not cut it"
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
        assert set(caller.outcomes) == {"200"}, f"failed requests: {caller.outcomes}"
        assert caller.after_term["200"], "requests were answered during the drain"

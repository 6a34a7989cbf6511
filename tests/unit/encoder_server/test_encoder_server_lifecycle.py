"""When a connection ends and when the process stops: the policy, and the connection that carries it out."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from retrieval_encoder_server.connections import MAX_HEAD_BYTES, SCOPE_EXTENSION, AgingConnection
from retrieval_encoder_server.lifecycle import QUIET_S, Lifecycle, idle_close_at
from retrieval_encoder_server.server import DrainingServer
from retrieval_encoder_server.settings import Settings


@pytest.fixture
def lifecycle(clock) -> Lifecycle:
    return Lifecycle(connection_age_s=60, drain_s=10, clock=clock, rng=random.Random(0))


# --- draining -----------------------------------------------------------------------------------------------------


def test_a_server_that_was_not_told_to_stop_never_drains(lifecycle, clock):
    clock.now += 1e9
    assert not lifecycle.is_draining
    assert not lifecycle.is_drained()


def test_draining_takes_its_whole_time(lifecycle, clock):
    lifecycle.begin_drain()
    assert lifecycle.is_draining
    clock.now += 9.9
    assert not lifecycle.is_drained()
    clock.now += 0.1
    assert lifecycle.is_drained()


def test_a_second_term_neither_lengthens_nor_cuts_the_drain(lifecycle, clock):
    lifecycle.begin_drain()
    clock.now += 5
    lifecycle.begin_drain()
    assert not lifecycle.is_drained()
    clock.now += 5
    assert lifecycle.is_drained()


def test_a_person_at_the_terminal_need_not_wait(lifecycle):
    lifecycle.begin_drain()
    lifecycle.begin_drain(immediately=True)
    assert lifecycle.is_drained()


@pytest.mark.parametrize(
    ("signals", "drained", "forced"),
    [
        ([signal.SIGTERM], False, False),
        ([signal.SIGTERM, signal.SIGTERM], False, False),
        ([signal.SIGINT], True, False),
        ([signal.SIGTERM, signal.SIGINT], True, False),
        ([signal.SIGINT, signal.SIGINT], True, True),
    ],
)
def test_term_drains_and_interrupt_ends(lifecycle, signals, drained, forced):
    server = DrainingServer(None, Settings(bundle_uri="unused"), lifecycle)
    for number in signals:
        server.handle_exit(number, None)
    assert lifecycle.is_draining
    assert (lifecycle.is_drained(), server.force_exit) == (drained, forced)
    assert not server.should_exit, "uvicorn's own way of stopping would stop at once"


# --- ages ---------------------------------------------------------------------------------------------------------


def test_ages_are_spread_by_a_tenth(lifecycle):
    ages = [lifecycle.connection_expires_at(1000.0) - 1000 for _ in range(200)]
    assert min(ages) >= 54
    assert max(ages) <= 66
    assert max(ages) - min(ages) > 10


@pytest.mark.parametrize(
    ("expires_at", "active_at", "close_at"),
    [
        pytest.param(60, 0, 60, id="silent from the start: as soon as it has aged"),
        pytest.param(60, 58, 58 + QUIET_S, id="busy a moment ago: not before it is quiet"),
        pytest.param(60, 500, 500 + QUIET_S, id="long past its age and busy: still not in the face of its client"),
    ],
)
def test_an_idle_connection_is_closed_only_when_aged_and_quiet(expires_at, active_at, close_at):
    assert idle_close_at(expires_at, active_at) == close_at


@pytest.mark.parametrize(("draining", "now", "ends"), [(False, 59, False), (False, 60, True), (True, 0, True)])
def test_a_response_ends_its_connection_when_aged_or_draining(lifecycle, draining, now, ends):
    if draining:
        lifecycle.begin_drain()
    assert lifecycle.must_end(expires_at=60, now=now) is ends


# --- the connection itself ----------------------------------------------------------------------------------------


class LoopInTheHand:
    """Runs tasks on the real loop; its time and its timers move only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((when, callback))
        return asyncio.get_running_loop().call_later(3600, lambda: None)

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(3600 + delay, callback)

    def create_task(self, coroutine: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coroutine)

    def advance(self, now: float) -> None:
        self.now = now
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for _, callback in due:
            callback()


class Wire(asyncio.Transport):
    """What a client would see."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "nothing is sent after the close"
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connected:
    """One connection to an application that answers when it is told to."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.loop = LoopInTheHand()
        self.answer = asyncio.Event()
        config = Config(self._app, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False)
        self.connection = AgingConnection(
            lifecycle=lifecycle, config=config, server_state=ServerState(), app_state={}, _loop=self.loop
        )
        self.wire = Wire()
        self.connection.connection_made(self.wire)
        ((self.expires_at, _),) = self.loop.timers

    async def request(self, count: int = 1) -> None:
        self.connection.data_received(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * count)
        await self.settle()

    async def respond(self) -> None:
        self.answer.set()
        await self.settle()
        self.answer.clear()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer.wait()
        headers = [(b"content-length", b"2")]
        if scope["extensions"][SCOPE_EXTENSION]():
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def connected(lifecycle) -> Connected:
    return Connected(lifecycle)


async def test_a_young_connection_is_kept(connected):
    for now in (1, 20, 40):
        connected.loop.advance(now)
        await connected.request()
        await connected.respond()
    assert connected.wire.sent.count(b"ok") == 3
    assert b"connection: close" not in connected.wire.sent
    assert not connected.wire.closed


async def test_an_aged_connection_ends_with_its_next_response(connected):
    connected.loop.advance(connected.expires_at - 1)
    await connected.request()
    await connected.respond()
    assert not connected.wire.closed
    connected.loop.advance(connected.expires_at)
    assert not connected.wire.closed, "its client may be sending the next request just now"
    await connected.request()
    await connected.respond()
    assert connected.wire.sent.endswith(b"connection: close\r\n\r\nok")
    assert connected.wire.closed


async def test_a_request_in_flight_is_answered_however_old_the_connection_gets(connected):
    await connected.request()
    for minutes in range(1, 10):
        connected.loop.advance(60.0 * minutes + 10)
        assert not connected.wire.closed
    await connected.respond()
    assert connected.wire.sent.endswith(b"connection: close\r\n\r\nok")
    assert connected.wire.closed


async def test_a_silent_connection_is_closed_at_its_age(connected):
    connected.loop.advance(connected.expires_at - 0.1)
    assert not connected.wire.closed
    connected.loop.advance(connected.expires_at)
    assert connected.wire.closed


async def test_a_connection_that_falls_silent_is_closed_when_it_is_quiet(connected):
    active_at = connected.expires_at - 1
    connected.loop.advance(active_at)
    await connected.request()
    await connected.respond()
    connected.loop.advance(connected.expires_at)
    connected.loop.advance(active_at + QUIET_S - 0.1)
    assert not connected.wire.closed
    connected.loop.advance(active_at + QUIET_S)
    assert connected.wire.closed


async def test_half_a_request_keeps_an_aged_connection_open(connected):
    connected.loop.advance(connected.expires_at - 1)
    connected.connection.data_received(b"GET / HTTP/1.1\r\n")
    connected.loop.advance(connected.expires_at)
    assert not connected.wire.closed
    connected.connection.data_received(b"Host: test\r\n\r\n")
    await connected.respond()
    assert connected.wire.sent.endswith(b"connection: close\r\n\r\nok")


async def test_a_head_that_comes_byte_by_byte_keeps_no_connection(connected):
    connected.connection.data_received(b"GET / HTTP/1.1\r\n")
    for now in range(1, int(connected.expires_at), 9):
        connected.loop.advance(now)
        connected.connection.data_received(b"a")
    connected.loop.advance(connected.expires_at)
    assert connected.wire.closed


@pytest.mark.parametrize("piece", [b"a: " + b"b" * 1000 + b"\r\n", b"b" * 1000], ids=["headers", "one header"])
@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\na: ", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: "],
    ids=["head", "trailer"],
)
async def test_a_head_without_end_is_refused(connected, begin, piece):
    connected.connection.data_received(begin)
    for _ in range(MAX_HEAD_BYTES // len(piece) + 1):
        connected.connection.data_received(piece)
    assert connected.wire.closed
    assert connected.wire.sent.startswith(b"HTTP/1.1 400 ")


async def test_requests_of_a_long_life_count_each_for_itself(connected):
    for _ in range(1000):
        connected.connection.data_received(
            b"POST / HTTP/1.1\r\nContent-Length: 2000\r\nX: " + b"x" * 2000 + b"\r\n\r\n" + b"b" * 2000
        )
        await connected.settle()
        await connected.respond()
    assert connected.wire.sent.count(b"ok") == 1000


async def test_a_body_in_the_smallest_chunks_is_no_head(connected):
    connected.connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(300):
        connected.connection.data_received(b"1\r\nb\r\n" * 1000)
    connected.connection.data_received(b"0\r\n\r\n")
    await connected.settle()
    await connected.respond()
    assert connected.wire.sent.endswith(b"ok")


async def test_bodies_count_for_no_head(connected):
    body = b"b" * 100_000
    for _ in range(20):
        connected.connection.data_received(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(3):
            connected.connection.data_received(body)
        await connected.settle()
        await connected.respond()
    assert connected.wire.sent.count(b"ok") == 20


async def test_while_draining_every_response_ends_its_connection(connected, lifecycle):
    lifecycle.begin_drain()
    await connected.request()
    await connected.respond()
    assert connected.wire.sent.endswith(b"connection: close\r\n\r\nok")
    assert connected.wire.closed


async def test_requests_sent_ahead_are_all_answered_before_the_connection_ends(connected, lifecycle):
    lifecycle.begin_drain()
    await connected.request(count=3)
    for _ in range(3):
        await connected.respond()
    assert connected.wire.sent.count(b"ok") == 3
    assert connected.wire.sent.count(b"connection: close") == 1
    assert connected.wire.closed


async def test_a_lost_connection_leaves_no_timer_that_acts(connected):
    connected.connection.connection_lost(None)
    connected.loop.advance(connected.expires_at)

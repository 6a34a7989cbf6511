"""The local MLflow server: found again, back after a kill with the same data, clear about a port that is taken."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3

import psutil
import pytest

from retrieval_operator.adapters.local import loopback
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.mlflow_server import MlflowServer
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.domain.plan import EnsureRun
from retrieval_operator.ports import Rejected, Retryable

pytestmark = pytest.mark.component


def new(home: LocalHome, **settings: int) -> MlflowServer:
    return MlflowServer(home, Supervisor(), **settings)


@pytest.fixture
async def home(tmp_path):
    home = LocalHome(tmp_path)
    yield home
    await new(home).stop()  # also when the test failed half-way


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without those that ended and wait for somebody to notice."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def cut_while_it_made_its_database(home: LocalHome) -> None:
    """What `down` in the middle of the very first start leaves behind: MLflow never starts on it again."""
    home.root.joinpath("mlflow").mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(home.root / "mlflow" / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE entity_associations (association_id TEXT)")


async def test_the_life_of_a_server(home, model):
    """One story, because each start takes seconds."""
    first = new(home)
    first.uri()
    cut_while_it_made_its_database(home)
    await first.ensure()
    await first.wait_until_healthy()
    registry = MlflowRegistry({"default": Connection(uri=first.uri())})
    await registry.ensure_run(model, EnsureRun(step="train", key="k", name="n"))
    before = await registry.observe(model)

    # Another control plane adopts it.
    adopted = new(home)
    await adopted.ensure()
    assert adopted.uri() == first.uri()
    assert adopted.observe() == first.observe()
    assert adopted.observe().starts == 1

    # It is killed: the adapter says Retryable; its wrapper starts it again, with the same data.
    for process in psutil.Process(adopted.observe().pid).children(recursive=True)[::-1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with pytest.raises(Retryable):
        await registry.observe(model)
    await adopted.wait_until_healthy()
    assert adopted.observe().starts == 2
    assert await registry.observe(model) == before

    # Its wrapper is killed: the next `ensure` replaces both, and is not stopped by the orphan on its port.
    wrapper = psutil.Process(adopted.observe().pid)
    orphans = wrapper.children(recursive=True)
    wrapper.kill()
    wrapper.wait(timeout=10)
    assert running(orphans)
    await new(home).ensure()
    assert not running(orphans)
    assert adopted.observe().state == "Running"

    # It is stopped, twice.
    await adopted.stop()
    await adopted.stop()
    assert not await adopted.is_healthy()
    assert adopted.observe().state == "Exited"
    with pytest.raises(Retryable):
        await registry.observe(model)
    await registry.close()


async def test_the_address_is_known_before_the_first_start_and_never_changes(home):
    assert new(home).uri() == new(home).uri()
    assert new(home, port=4321).uri() == new(home).uri()
    assert not await new(home).is_healthy()


def test_a_wanted_port_is_used_the_first_time(home):
    assert new(home, port=23_456).uri() == "http://127.0.0.1:23456"
    assert new(home).uri() == "http://127.0.0.1:23456"


async def test_a_port_that_another_program_took_is_told_with_the_remedy(home):
    server = new(home)
    with socket.socket() as other:
        other.bind((loopback.HOST, int(server.uri().rpartition(":")[2])))
        other.listen()
        with pytest.raises(Rejected, match=rf"is used by process {os.getpid()} .* remove .*server\.json"):
            await server.ensure()
    assert server.observe() is None


async def test_a_server_that_does_not_answer_in_time_is_told_with_the_end_of_its_log(home):
    (home.root / "mlflow" / "mlflow.db").mkdir(parents=True)
    server = new(home)
    await server.ensure()
    with pytest.raises(Retryable, match=r"does not answer .* its log .* ends with: .*"):
        await server.wait_until_healthy(timeout_s=0)


async def test_a_server_that_was_never_started_is_told(home):
    with pytest.raises(Retryable, match="never started"):
        await new(home).wait_until_healthy(timeout_s=0)

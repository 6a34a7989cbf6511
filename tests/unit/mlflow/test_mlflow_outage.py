"""An MLflow that does not answer is asked by one request now and then, and all others fail at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.adapters.mlflow.outage import ASK_AGAIN_S, NoAnswer
from retrieval_operator.adapters.mlflow.rest import RestClient
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.ports import PortError

SILENT = httpx.ReadTimeout("")
WELL = httpx.Response(200, json={})


async def no_sleep(seconds: float) -> None:
    pass


@dataclass
class Server:
    """Answers every request with `answer`, after `meanwhile` if there is one. Its clock stands still."""

    answer: httpx.Response | Exception = field(default_factory=lambda: SILENT)
    now: float = 1000.0
    asked: int = 0
    meanwhile: Callable[[], Any] | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        answer, meanwhile, self.meanwhile = self.answer, self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> RestClient:
        connection = Connection(uri="http://mlflow.test")
        return RestClient(connection, transport=httpx.MockTransport(self), sleep=no_sleep, now=lambda: self.now)


@pytest.fixture
def server() -> Server:
    return Server()


async def ask(rest: RestClient) -> None:
    await rest.get("runs/get", {})


async def test_a_silent_mlflow_is_asked_again_by_one_request_after_a_while(server: Server) -> None:
    rest = server.client()
    said = set()
    for seconds, asked in ((0, 1), (0, 1), (9.9, 1), (10, 2), (10, 2), (19.9, 2), (20, 3)):
        server.now = 1000 + seconds
        with pytest.raises(NoAnswer) as caught:
            await ask(rest)
        said.add(str(caught.value))
        assert server.asked == asked, f"after {seconds} s"
    assert len(said) == 1, "the condition that tells people does not flap"


async def test_while_one_request_waits_to_see_whether_mlflow_is_back_the_others_fail_at_once(server: Server) -> None:
    rest, release = server.client(), asyncio.Event()
    with pytest.raises(NoAnswer):
        await ask(rest)
    server.now += ASK_AGAIN_S
    server.meanwhile = release.wait
    probe = asyncio.create_task(ask(rest))
    await asyncio.sleep(0.01)
    with pytest.raises(NoAnswer):
        await ask(rest)
    assert server.asked == 2
    release.set()
    with pytest.raises(NoAnswer):
        await probe


async def test_an_mlflow_that_answers_again_is_asked_by_all(server: Server) -> None:
    rest = server.client()
    with pytest.raises(NoAnswer):
        await ask(rest)
    server.now, server.answer = server.now + ASK_AGAIN_S, WELL
    for _ in range(3):
        await ask(rest)
    assert server.asked == 4


async def test_a_question_that_takes_mlflow_too_long_is_nobody_elses_trouble(server: Server) -> None:
    rest = server.client()

    async def somebody_else_is_answered() -> None:
        server.answer = WELL
        await ask(rest)

    server.meanwhile = somebody_else_is_answered
    with pytest.raises(NoAnswer):
        await ask(rest)
    await ask(rest)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.ConnectError("refused"), id="nobody listens"),
        pytest.param(httpx.Response(503, text="busy"), id="busy"),
        pytest.param(httpx.Response(500, json={"error_code": "INTERNAL_ERROR"}), id="failing"),
        pytest.param(httpx.Response(401), id="other credentials wanted"),
        pytest.param(httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"}), id="not there"),
    ],
)
async def test_what_is_told_at_once_is_not_remembered(server: Server, answer: Any) -> None:
    rest, server.answer = server.client(), answer
    with pytest.raises(PortError):
        await ask(rest)
    server.answer = WELL
    await ask(rest)


async def test_a_gateway_that_gave_up_waiting_means_a_silent_mlflow(server: Server) -> None:
    rest, server.answer = server.client(), httpx.Response(504, text="upstream request timeout")
    for _ in range(2):
        with pytest.raises(NoAnswer, match="504: upstream request timeout"):
            await ask(rest)
    assert server.asked == 1


async def test_a_silent_artifact_store_is_no_silent_mlflow_and_is_asked_once(server: Server) -> None:
    rest = server.client()
    with pytest.raises(NoAnswer):
        await rest.artifact("r", "report.json")
    assert server.asked == 1
    server.answer = WELL
    await ask(rest)


async def test_a_silent_artifact_store_is_asked_by_one_object_now_and_then(server: Server) -> None:
    """Else each object with a report would hold a worker of the control plane for a time-out, one after the other."""
    rest = server.client()
    for seconds, asked in ((0, 1), (1, 1), (9.9, 1), (10, 2)):
        server.now = 1000 + seconds
        with pytest.raises(NoAnswer):
            await rest.artifact("r", "report.json")
        assert server.asked == asked, f"after {seconds} s"
    server.now, server.answer = server.now + ASK_AGAIN_S, WELL
    for _ in range(2):
        assert await rest.artifact("r", "report.json") == b"{}"
    assert server.asked == 4


async def test_of_a_silent_mlflow_no_artifact_is_asked(server: Server) -> None:
    rest = server.client()
    with pytest.raises(NoAnswer):
        await ask(rest)
    with pytest.raises(NoAnswer):
        await rest.artifact("r", "report.json")
    assert server.asked == 1


async def test_a_clock_that_was_set_back_does_not_prolong_a_silence(server: Server) -> None:
    rest = server.client()
    with pytest.raises(NoAnswer):
        await ask(rest)
    server.now, server.answer = server.now - 3600, WELL
    await ask(rest)


async def test_reads_and_writes_of_all_objects_share_it_and_another_connection_does_not(model: RetrievalModel) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "silent":
            raise SILENT
        return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})

    connections = {"default": Connection(uri="http://silent"), "other": Connection(uri="http://well")}
    registry = MlflowRegistry(connections, now=lambda: 1000.0, transport=httpx.MockTransport(answer))
    metadata = model.metadata.model_copy(update={"name": "second"})
    for one in (model, model.model_copy(update={"metadata": metadata})):
        with pytest.raises(NoAnswer):
            await registry.observe(one)
    with pytest.raises(NoAnswer):
        await registry.set_alias(model, "champion", "1")
    assert asked == ["silent"]
    elsewhere = model.spec.registry.model_copy(update={"connection": "other"})
    spec = model.spec.model_copy(update={"registry": elsewhere})
    await registry.observe(model.model_copy(update={"spec": spec}))
    assert set(asked) == {"silent", "well"}
    await registry.close()

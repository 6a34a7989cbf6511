"""Bounds, overload and deadlines: what is refused, and that nobody else is harmed by it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from retrieval_encoder_server import service

pytestmark = pytest.mark.asyncio


async def test_a_body_beyond_the_bound_gets_413_before_it_is_parsed(start_server, error_of):
    client = start_server(max_body_bytes=1024).client
    response = await client.post("/v1/embeddings", content=b"{" * 1025)
    assert response.status_code == 413
    assert "larger than the 1024 bytes" in error_of(response)
    assert (await client.post("/v1/embeddings", content=b"{" * 1024)).status_code == 422


async def test_a_body_in_many_pieces_is_bounded_too(start_server):
    async def pieces():
        for _ in range(100):
            yield b"x" * 100

    response = await start_server(max_body_bytes=1024).client.post("/v1/embeddings", content=pieces())
    assert response.status_code == 413


async def test_bodies_that_together_take_all_room_get_429_until_others_are_answered(
    start_server, world, hanging, error_of
):
    client = start_server(encode=hanging(world.encode), max_body_bytes=1024, max_bodies_bytes=1500).client
    body = b'{"input": "a"}' + b" " * 900
    first = asyncio.create_task(client.post("/v1/embeddings", content=body))
    await asyncio.to_thread(hanging.entered.wait, 10)
    refused = await client.post("/v1/embeddings", content=body)
    assert refused.status_code == 429, refused.text
    assert error_of(refused) == "the bodies of other requests take all room there is; try again later"
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.get("/v1/ids")).status_code == 200, "what has no body needs no room"
    hanging.release.set()
    assert (await first).status_code == 200
    assert (await client.post("/v1/embeddings", content=body)).status_code == 200


async def test_what_was_refused_takes_no_room(start_server):
    client = start_server(max_body_bytes=1024, max_bodies_bytes=1024).client

    for _ in range(3):
        assert (await client.post("/v1/embeddings", content=b"x" * 1025)).status_code == 413
        assert (await client.post("/v1/embeddings", content=b"x" * 1024)).status_code == 422


async def test_a_request_above_the_whole_queue_gets_413(start_server, error_of):
    client = start_server(max_queue_tokens=5).client
    response = await client.embed(input=["abc", "def"])
    assert response.status_code == 413
    assert error_of(response) == "the request has 6 tokens, this server takes at most 5 at once"


async def test_a_full_queue_gets_429_with_retry_after_and_nobody_waiting_is_harmed(
    start_server, world, hanging, error_of
):
    server = start_server(encode=hanging(world.encode), max_queue_tokens=5)
    running = asyncio.create_task(server.client.embed(input="first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    waiting = asyncio.create_task(server.client.embed(input="abcd"))
    while server.sample("retrieval_encoder_queued_tokens") != 4:
        await asyncio.sleep(0)
    refused = await server.client.embed(input="xy")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert error_of(refused) == "4 of at most 5 tokens wait already, the request has 2; try again later"
    hanging.release.set()
    for task, prompt in ((running, "first"), (waiting, "abcd")):
        np.testing.assert_allclose((await task).json()["data"][0]["embedding"], world.vector(prompt), atol=1e-6)
    assert server.sample("retrieval_encoder_refused_total", reason="overloaded") == 1


async def test_requests_that_wait_are_encoded_as_one_batch(start_server, world, hanging):
    batches: list[int] = []

    def encode(prompts):
        batches.append(len(prompts))
        return world.encode(prompts)

    server = start_server(encode=hanging(encode))
    first = asyncio.create_task(server.client.embed(input="first"))
    await asyncio.to_thread(hanging.entered.wait, 10)
    others = [asyncio.create_task(server.client.embed(input=[f"a{n}", f"b{n}"])) for n in range(5)]
    while server.sample("retrieval_encoder_queued_tokens") != 20:
        await asyncio.sleep(0)
    hanging.release.set()
    await first
    for number, response in enumerate(await asyncio.gather(*others)):
        vectors = [entry["embedding"] for entry in response.json()["data"]]
        np.testing.assert_allclose(vectors, [world.vector(f"a{number}"), world.vector(f"b{number}")], atol=1e-6)
    assert batches == [1, 10]


REQUESTS = {
    "/v1/embeddings": {"input": "a"},
    "/v1/retrieve": {"member": {}},
    "/v1/models/model:predict": {"instances": ["a"]},
}


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        *((path, stage) for path in REQUESTS for stage in ("tokenise", "encode")),
        ("/v1/retrieve", "search"),
    ],
)
async def test_whatever_stage_is_slow_the_answer_is_503_at_the_deadline(
    start_server, world, hanging, error_of, path, stage
):
    stages = {"tokenise": world.tokenise, "encode": world.encode, "index": world.index()}
    if stage == "search":
        stages["index"].search = hanging(stages["index"].search)
    else:
        stages[stage] = hanging(stages[stage])
    client = start_server(**stages, request_timeout_seconds=0.05).client
    response = await client.post(path, json=REQUESTS[path])
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "unavailable"
    assert error_of(response) == "not answered within 0.05 s; the server is overloaded"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_request_that_gave_up_counts_until_its_thread_is_done(
    start_server, world, hanging, error_of, monkeypatch
):
    monkeypatch.setattr(service, "MAX_PREPARING", 1)
    client = start_server(tokenise=hanging(world.tokenise), request_timeout_seconds=0.05).client
    assert (await client.embed(input="a")).status_code == 503
    refused = await client.embed(input="a")
    assert refused.status_code == 429
    assert error_of(refused) == "1 requests are being prepared; try again later"
    hanging.release.set()
    while (response := await client.embed(input="a")).status_code == 429:
        await asyncio.sleep(0)
    assert response.status_code == 200
    assert (await client.embed(input="")).status_code == 422, "a refusal gives its place back, too"
    assert (await client.embed(input="a")).status_code == 200


async def test_a_prompt_that_cannot_fit_is_refused_without_being_tokenised(start_server, world, error_of):
    tokenised: list[str] = []

    def record(text: str) -> list[int]:
        tokenised.append(text)
        return world.tokenise(text)

    client = start_server(tokenise=record).client
    longest = 64 * world.longest_token
    response = await client.embed(input=["a", "x" * (longest + 1)])
    assert response.status_code == 413
    assert error_of(response) == (
        f"input[1]: the prompt has {longest + 1} characters, more than the 64 tokens that this bundle takes can hold "
        f"({longest})"
    )
    assert tokenised == ["a"]
    assert "has 256 tokens" in error_of(await client.embed(input="x" * longest)), "up to there, tokens decide"
    assert tokenised == ["a", "x" * longest]

"""Every endpoint over the ASGI application, with a predictable model and index."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import threading

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio


async def embed(client, **body) -> httpx.Response:
    return await client.post("/v1/embeddings", json=body)


def error_of(response: httpx.Response) -> str:
    document = response.json()
    assert set(document) == {"error"}, "one error shape everywhere"
    assert set(document["error"]) == {"message", "type"}
    return document["error"]["message"]


# --- what is served -----------------------------------------------------------------------------------------------


async def test_ids_say_what_is_served(client, world):
    assert (await client.get("/v1/ids")).json() == {
        "bundle_id": world.bundle_id,
        "generation_id": world.generation_id,
        "dimension": world.served,
        "count": 20,
    }


async def test_ids_without_a_generation(start_server, world):
    response = await start_server(index=None).client.get("/v1/ids")
    assert response.json() == {
        "bundle_id": world.bundle_id,
        "generation_id": None,
        "dimension": world.served,
        "count": 0,
    }
    assert response.headers["x-generation-id"] == ""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/ids", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/model", 200),
        ("GET", "/v2/models/model", 200),
        ("GET", "/v2/models/model/ready", 200),
        ("GET", "/v1/models/other", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/retrieve", 405),
        ("POST", "/v1/retrieve", 422),
        ("POST", "/v2/models/model/infer", 422),
        ("POST", "/v2/models/other/infer", 422),
        ("POST", "/v1/models/other:predict", 404),
    ],
)
async def test_every_response_carries_the_ids(client, world, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status, response.text
    assert response.headers["x-bundle-id"] == world.bundle_id
    assert response.headers["x-generation-id"] == world.generation_id
    if status >= 400:
        assert error_of(response)


@pytest.mark.parametrize("path", ["/v2/repository/models/model/unload", "/v2/repository/models/model/load"])
async def test_nobody_can_unload_the_model(client, path):
    assert (await client.post(path)).status_code == 404


@pytest.mark.parametrize("path", ["/v1/ids", "/v1/retrieve", "/v2/health/ready"])
async def test_another_expected_bundle_gets_412(client, world, path):
    response = await client.get(path, headers={"X-Expected-Bundle-Id": "b-ffffffffffffffff"})
    assert response.status_code == 412
    assert error_of(response) == f"X-Expected-Bundle-Id is b-ffffffffffffffff, this server has bundle {world.bundle_id}"


async def test_the_expected_bundle_is_served(client, world):
    assert (await client.get("/v1/ids", headers={"X-Expected-Bundle-Id": world.bundle_id})).status_code == 200


# --- embeddings ---------------------------------------------------------------------------------------------------


async def test_embeddings_have_openais_shape(client, world):
    response = await embed(client, input=["one", "three"], model="model", user="somebody")
    assert response.status_code == 200
    document = response.json()
    assert {key: document[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": "model",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert [(entry["object"], entry["index"]) for entry in document["data"]] == [("embedding", 0), ("embedding", 1)]
    vectors = [entry["embedding"] for entry in document["data"]]
    np.testing.assert_allclose(vectors, [world.vector("one"), world.vector("three")], atol=1e-6)


async def test_features_are_rendered_by_side(client, world):
    response = await embed(client, input=[{"member": {"activity": 1}}, {"item": {"words": 2}}])
    vectors = [entry["embedding"] for entry in response.json()["data"]]
    np.testing.assert_allclose(vectors, [world.vector("mactivity=1"), world.vector("iwords=2")], atol=1e-6)


async def test_base64_holds_the_same_floats(client):
    floats = (await embed(client, input="a")).json()["data"][0]["embedding"]
    text = (await embed(client, input="a", encoding_format="base64")).json()["data"][0]["embedding"]
    decoded = struct.unpack(f"<{len(floats)}f", base64.b64decode(text))
    assert list(decoded) == pytest.approx(floats, abs=1e-7)


@pytest.mark.parametrize("dimension", ["full", "served", "small"])
async def test_another_trained_dimension_is_cut_and_of_unit_length(client, world, dimension):
    width = getattr(world, dimension)
    vector = (await embed(client, input="a", dimensions=width)).json()["data"][0]["embedding"]
    np.testing.assert_allclose(vector, world.vector("a", width), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": "a", "dimensions": 3}, 422, "dimensions: found 3, this bundle has 2, 4, 8"),
        ({"input": "a", "model": "gpt"}, 404, "model: found 'gpt', this server has 'model'"),
        ({"input": []}, 422, "no inputs: expected at least one"),
        ({"input": ""}, 422, "input: the prompt is empty"),
        ({"input": ["a", "x" * 65]}, 413, "input[1]: the prompt has 65 tokens, this bundle takes at most 64"),
        ({"input": ["a"] * 257}, 413, "found 257 inputs, this server takes at most 256 at once"),
        ({"input": [{"member": {"jobs": 1}}]}, 422, "input[0].member.jobs: unknown field"),
        ({"inputs": "a"}, 422, "input: missing, it is required; inputs: unknown field"),
    ],
)
async def test_embeddings_refusals(client, body, status, message):
    response = await client.post("/v1/embeddings", json=body)
    assert response.status_code == status
    assert error_of(response).startswith(message)


# --- KServe's protocols -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain"])
async def test_v1_predict(client, world, content_type):
    body = json.dumps({"instances": ["a", {"item": {}}]})
    response = await client.post("/v1/models/model:predict", content=body, headers={"content-type": content_type})
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(response.json()["predictions"], [world.vector("a"), world.vector("i")], atol=1e-6)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"instances": "a"}', b'{"instances": [1]}', b'{"inputs": []}', b"", b"\xff"]
)
async def test_v1_malformed_bodies(client, body):
    response = await client.post("/v1/models/model:predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert error_of(response)


def tensor(name: str, *elements: str, datatype: str = "BYTES") -> dict:
    return {"inputs": [{"name": name, "shape": [len(elements)], "datatype": datatype, "data": list(elements)}]}


@pytest.mark.parametrize(
    ("name", "elements", "prompts"),
    [("prompts", ["a", "b"], ["a", "b"]), ("members", ['{"activity": 1}'], ["mactivity=1"]), ("items", ["{}"], ["i"])],
)
async def test_v2_infer(client, world, name, elements, prompts):
    response = await client.post("/v2/models/model/infer", json={"id": "7", **tensor(name, *elements)})
    assert response.status_code == 200, response.text
    document = response.json()
    assert (document["id"], document["model_name"]) == ("7", "model")
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("embeddings", "FP32", [len(prompts), world.served])
    vectors = np.reshape(output["data"], output["shape"])
    np.testing.assert_allclose(vectors, [world.vector(prompt) for prompt in prompts], atol=1e-6)


async def test_v2_infer_in_the_binary_extension(client, world):
    element = b"abc"
    raw = struct.pack("<I", len(element)) + element
    head = json.dumps(
        {
            "inputs": [
                {"name": "prompts", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    response = await client.post("/v2/models/model/infer", content=head + raw, headers=headers)
    assert response.status_code == 200, response.text
    body = response.content[int(response.headers["inference-header-content-length"]) :]
    np.testing.assert_allclose(np.frombuffer(body, "<f4"), world.vector("abc"), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor("input", "a"), "inputs.input: unknown tensor, expected prompts, members or items"),
        (tensor("prompts", "1", datatype="FP32"), "inputs.prompts: found datatype FP32, expected BYTES"),
        (tensor("members", "{"), "inputs.members[0]: not JSON"),
        (tensor("members", "[]"), "inputs.members[0]: found an object with ['member'], expected"),
        (tensor("members", '{"jobs": 1}'), "inputs.members[0].member.jobs: unknown field"),
        (tensor("prompts", "\ud800"), "inputs.prompts[0]: not valid Unicode text"),
        ({"inputs": [{**tensor("prompts", "a")["inputs"][0], "shape": [2]}]}, "data does not have the shape [2]"),
        ({"inputs": [{**tensor("prompts")["inputs"][0], "data": [1], "shape": [1]}]}, "an element is not a string"),
        ({"inputs": []}, "inputs: found 0 tensors, expected one of"),
        ({}, "inputs: Field required"),
        ({"inputs": [{}]}, "inputs[0].name: Field required"),
    ],
)
async def test_v2_refusals(client, body, message):
    headers = {"content-type": "application/json"}
    response = await client.post("/v2/models/model/infer", content=json.dumps(body), headers=headers)
    assert response.status_code == 422, response.text
    assert message in error_of(response)


@pytest.mark.parametrize(("length", "body"), [("9", b"{}"), ("x", b"{}"), ("2", b"{}"), ("-1", b"{}"), ("4", b"null")])
async def test_v2_malformed_binary_bodies(client, length, body):
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length}
    response = await client.post("/v2/models/model/infer", content=body, headers=headers)
    assert response.status_code == 422, response.text


async def test_v2_metadata_describes_the_tensors(client, world):
    document = (await client.get("/v2/models/model")).json()
    assert document["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, world.served]}]


# --- retrieve -----------------------------------------------------------------------------------------------------


def expected_order(world, query, exclude=(), allowed=None) -> list[str]:
    index = world.index()
    found = index.search(np.array([query]), 20, [list(exclude)], allowed)
    return found.ids[0].tolist()


async def retrieve(client, **body) -> httpx.Response:
    return await client.post("/v1/retrieve", json=body)


async def test_three_kinds_of_query_for_one_vector_get_one_answer(client, world):
    vector = [float(x) for x in world.vector("mactivity=1")]
    by_features = (await retrieve(client, member={"activity": 1}, k=5)).json()
    by_vector = (await retrieve(client, embedding=vector, bundle_id=world.bundle_id, k=5)).json()
    assert by_features["ids"] == by_vector["ids"] == expected_order(world, vector)[:5]
    assert by_features["scores"] == pytest.approx(by_vector["scores"], abs=1e-6)
    assert by_features["scores"] == sorted(by_features["scores"], reverse=True)
    assert (by_features["bundle_id"], by_features["generation_id"]) == (world.bundle_id, world.generation_id)


async def test_a_member_id_uses_its_stored_vector(client, world):
    assert (await retrieve(client, member_id="known", k=1)).json()["ids"] == ["item-7"]


async def test_a_full_width_embedding_is_cut(client, world):
    whole = [float(x) for x in world.vector("a", world.full)]
    cut = [float(x) for x in world.vector("a", world.served)]
    answers = [(await retrieve(client, embedding=v, bundle_id=world.bundle_id)).json() for v in (whole, cut)]
    assert answers[0]["ids"] == answers[1]["ids"]
    assert answers[0]["scores"] == pytest.approx(answers[1]["scores"], abs=1e-6)


async def test_a_vector_of_another_length_than_one_gets_cosines(client, world):
    vector = world.vector("a")
    answers = [
        (await retrieve(client, embedding=(vector * f).tolist(), bundle_id=world.bundle_id)).json()["scores"]
        for f in (1, 100)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


async def test_k_is_2000_by_default_and_at_most_the_corpus(client, world):
    assert len((await retrieve(client, member_id="known")).json()["ids"]) == 20
    assert len((await retrieve(client, member_id="known", k=21)).json()["ids"]) == 20
    assert len((await retrieve(client, member_id="known", k=3)).json()["ids"]) == 3


async def test_excluded_items_are_absent_and_k_is_still_filled(client, world):
    best = (await retrieve(client, member_id="known", k=6)).json()["ids"]
    answer = (await retrieve(client, member_id="known", k=3, exclude=[*best[:3], "no such item"])).json()
    assert answer["ids"] == best[3:6]


async def test_a_filter_keeps_only_allowed_items(client, world):
    ids = (await retrieve(client, member_id="known", filter={"author": ["odd"]})).json()["ids"]
    assert len(ids) == 10
    assert all(int(item.split("-")[1]) % 2 for item in ids)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"embedding": [1, 0, 0, 0], "bundle_id": "b-other"}, 412, "bundle_id is b-other, this server has bundle"),
        ({"embedding": [1, 0, 0], "bundle_id": "SERVED"}, 422, "embedding: found 3 numbers, expected 4 .* or 8"),
        ({"embedding": [0, 0, 0, 0], "bundle_id": "SERVED"}, 422, "embedding: its length is zero"),
        (
            {"member_id": "nobody"},
            404,
            "member_id: generation g-fedcba9876543210 has no vector of this member; send features",
        ),
        ({"member": {"jobs": 1}}, 422, "member.jobs: unknown field"),
        (
            {"member_id": "known", "filter": {"colour": ["x"]}},
            422,
            "filter.colour: not a filterable attribute; .* author",
        ),
    ],
)
async def test_retrieve_refusals(client, world, body, status, message):
    body = {key: world.bundle_id if value == "SERVED" else value for key, value in body.items()}
    response = await client.post("/v1/retrieve", json=body)
    assert response.status_code == status
    assert re.search(message, error_of(response))


async def test_without_a_generation_there_is_nothing_to_retrieve(start_server):
    response = await retrieve(start_server(index=None).client, member={})
    assert response.status_code == 404
    assert "started without an index generation (GENERATION_URI)" in error_of(response)


# --- bounds, overload, health -------------------------------------------------------------------------------------


async def test_a_body_beyond_the_bound_gets_413_before_it_is_parsed(start_server):
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


async def test_a_request_above_the_whole_queue_gets_413(start_server):
    client = start_server(max_queue_tokens=5).client
    response = await embed(client, input=["abc", "def"])
    assert response.status_code == 413
    assert error_of(response) == "the request has 6 tokens, this server takes at most 5 at once"


async def test_a_full_queue_gets_429_with_retry_after_and_nobody_waiting_is_harmed(start_server, world):
    entered, release = threading.Event(), threading.Event()

    def slow(prompts):
        entered.set()
        assert release.wait(10)
        return np.stack([world.vector(bytes(ids).decode(), world.full) for ids in prompts])

    server = start_server(encode=slow, max_queue_tokens=5)
    running = asyncio.create_task(embed(server.client, input="first"))
    await asyncio.to_thread(entered.wait, 10)
    waiting = asyncio.create_task(embed(server.client, input="abcd"))
    while server.sample("retrieval_encoder_queued_tokens") != 4:
        await asyncio.sleep(0)
    refused = await embed(server.client, input="xy")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert error_of(refused) == "4 of at most 5 tokens wait already, the request has 2; try again later"
    release.set()
    for task, prompt in ((running, "first"), (waiting, "abcd")):
        np.testing.assert_allclose((await task).json()["data"][0]["embedding"], world.vector(prompt), atol=1e-6)
    assert server.sample("retrieval_encoder_refused_total", reason="overloaded") == 1


async def test_requests_that_wait_are_encoded_as_one_batch(start_server, world):
    entered, release, batches = threading.Event(), threading.Event(), []

    def slow(prompts):
        batches.append(len(prompts))
        entered.set()
        assert release.wait(10)
        return np.stack([world.vector(bytes(ids).decode(), world.full) for ids in prompts])

    server = start_server(encode=slow)
    first = asyncio.create_task(embed(server.client, input="first"))
    await asyncio.to_thread(entered.wait, 10)
    others = [asyncio.create_task(embed(server.client, input=[f"a{n}", f"b{n}"])) for n in range(5)]
    while server.sample("retrieval_encoder_queued_tokens") != 20:
        await asyncio.sleep(0)
    release.set()
    await first
    for number, response in enumerate(await asyncio.gather(*others)):
        vectors = [entry["embedding"] for entry in response.json()["data"]]
        np.testing.assert_allclose(vectors, [world.vector(f"a{number}"), world.vector(f"b{number}")], atol=1e-6)
    assert batches == [1, 10]


async def test_a_slow_answer_gets_503(start_server):
    release = threading.Event()

    def hang(prompts):
        assert release.wait(10)
        return np.ones((len(prompts), 8), np.float32)

    response = await embed(start_server(encode=hang, request_timeout_seconds=0.05).client, input="a")
    release.set()
    assert response.status_code == 503
    assert error_of(response) == "not answered within 0.05 s; the server is overloaded"


async def test_a_defect_gets_500_without_a_stack_trace(start_server):
    def defect(prompts):
        raise ZeroDivisionError("secret detail")

    response = await embed(start_server(encode=defect).client, input="a")
    assert response.status_code == 500
    assert error_of(response) == "internal error; the server's log says more"


async def test_live_fails_when_the_model_cannot_encode_any_more(start_server, world):
    broken = False

    def encode(prompts):
        if broken:
            raise RuntimeError("the device is gone")
        return np.stack([world.vector(bytes(ids).decode(), world.full) for ids in prompts])

    server = start_server(encode=encode)
    assert (await server.client.get("/v2/health/live")).json() == {"live": True}
    broken = True
    assert (await server.client.get("/v2/health/live")).status_code == 200, "it encoded a moment ago"
    server.clock.now += 11
    server.service._encode._beat_at = server.clock.now
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"):
        assert (await server.client.get(path)).status_code == 503, path


async def test_live_fails_when_the_compute_thread_has_died(server):
    assert (await server.client.get("/v2/health/live")).status_code == 200
    server.service._encode.stop()
    response = await server.client.get("/v2/health/live")
    assert response.status_code == 503
    assert error_of(response) == "Server is not live."


async def test_a_draining_server_is_not_ready_but_live_and_answers(server):
    server.lifecycle.begin_drain()
    for path, status in (
        ("/v2/health/ready", 503),
        ("/v1/models/model", 503),
        ("/v2/models/model/ready", 503),
        ("/v2/health/live", 200),
    ):
        assert (await server.client.get(path)).status_code == status, path
    assert (await embed(server.client, input="a")).status_code == 200
    assert (await retrieve(server.client, member_id="known")).status_code == 200
    assert (await server.client.post("/v1/models/model:predict", json={"instances": ["a"]})).status_code == 200
    assert (await server.client.post("/v2/models/model/infer", json=tensor("prompts", "a"))).status_code == 200


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *("input", "model", "dimensions", "encoding_format", "instances", "inputs", "id", "parameters", "outputs"),
    *("embedding", "bundle_id", "member", "member_id", "k", "exclude", "filter"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/embeddings", "/v1/retrieve", "/v1/models/model:predict", "/v2/models/model/infer"]),
    body=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=4) | ANY_JSON,
)
async def test_no_body_is_an_internal_error(client, path, body):
    response = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in {200, 404, 412, 413, 422}, response.text
    if response.status_code != 200:
        assert error_of(response)


# --- metrics ------------------------------------------------------------------------------------------------------


async def test_metric_names_are_a_public_interface(server, golden):
    await embed(server.client, input="a")
    text = (await server.client.get("/metrics")).text
    described = [line for line in text.splitlines() if line.startswith("# TYPE") and "_created" not in line]
    golden("encoder_server/metrics.txt", "\n".join(sorted(described)) + "\n")


async def test_requests_are_counted_by_route_not_by_path(server):
    await embed(server.client, input="a")
    await embed(server.client, input="")
    await server.client.get("/v1/models/whatever")
    await server.client.get("/any/path/at/all")
    count = lambda endpoint, code: server.sample("retrieval_encoder_requests_total", endpoint=endpoint, code=code)  # noqa: E731
    assert count("/v1/embeddings", "200") == 1
    assert count("/v1/embeddings", "422") == 1
    assert count("/v1/models/{model_name}", "404") == 1
    assert count("none", "404") == 1

"""`/v1/embeddings` in OpenAI's shape."""

from __future__ import annotations

import base64
import struct

import numpy as np
import pytest

pytestmark = pytest.mark.asyncio


async def test_embeddings_have_openais_shape(client, world):
    response = await client.embed(input=["one", "three"], model="model", user="somebody")
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
    response = await client.embed(input=[{"member": {"activity": 1}}, {"item": {"words": 2}}])
    vectors = [entry["embedding"] for entry in response.json()["data"]]
    np.testing.assert_allclose(vectors, [world.vector("mactivity=1"), world.vector("iwords=2")], atol=1e-6)


async def test_base64_holds_the_same_floats(client):
    floats = (await client.embed(input="a")).json()["data"][0]["embedding"]
    text = (await client.embed(input="a", encoding_format="base64")).json()["data"][0]["embedding"]
    decoded = struct.unpack(f"<{len(floats)}f", base64.b64decode(text))
    assert list(decoded) == pytest.approx(floats, abs=1e-7)


@pytest.mark.parametrize("dimension", ["full", "served", "small"])
async def test_another_trained_dimension_is_cut_and_of_unit_length(client, world, dimension):
    width = getattr(world, dimension)
    vector = (await client.embed(input="a", dimensions=width)).json()["data"][0]["embedding"]
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
async def test_embeddings_refusals(client, body, status, message, error_of):
    response = await client.post("/v1/embeddings", json=body)
    assert response.status_code == status
    assert error_of(response).startswith(message)

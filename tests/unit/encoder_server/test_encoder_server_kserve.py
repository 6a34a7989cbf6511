"""KServe's V1 and V2 over REST."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain"])
async def test_v1_predict(client, world, content_type):
    body = json.dumps({"instances": ["a", {"item": {}}]})
    response = await client.post("/v1/models/model:predict", content=body, headers={"content-type": content_type})
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(response.json()["predictions"], [world.vector("a"), world.vector("i")], atol=1e-6)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"instances": "a"}', b'{"instances": [1]}', b'{"inputs": []}', b"", b"\xff"]
)
async def test_v1_malformed_bodies(client, body, error_of):
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
    assert document["parameters"] == {"bundle_id": world.bundle_id, "generation_id": world.generation_id}
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
        ({"inputs": [{}] * 17}, "inputs: found 17 entries, expected at most 16"),
        ({"inputs": [{"shape": [""] * 17}]}, "inputs[0].shape: found 17 entries"),
        ({"inputs": [{"parameters": {str(n): [] for n in range(17)}}]}, "inputs[0].parameters: found 17 entries"),
        ({"inputs": [], "outputs": [{}] * 17}, "outputs: found 17 entries"),
        ({"inputs": [], "parameters": {str(n): [] for n in range(17)}}, "parameters: found 17 entries"),
        ([{}] * 100, "the body: found list, expected an object"),
    ],
)
async def test_v2_refusals(client, body, message, error_of):
    headers = {"content-type": "application/json"}
    response = await client.post("/v2/models/model/infer", content=json.dumps(body), headers=headers)
    assert response.status_code == 422, response.text
    assert message in error_of(response)


@pytest.mark.parametrize(("length", "body"), [("9", b"{}"), ("x", b"{}"), ("2", b"{}"), ("-1", b"{}"), ("4", b"null")])
async def test_v2_malformed_binary_bodies(client, length, body):
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length}
    response = await client.post("/v2/models/model/infer", content=body, headers=headers)
    assert response.status_code == 422, response.text


async def test_v2_shapes_are_checked_in_the_binary_extension_too(client, error_of):
    head = json.dumps({"inputs": [{"name": "prompts", "shape": ["a"], "datatype": "BYTES", "data": ["a"]}]}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    response = await client.post("/v2/models/model/infer", content=head, headers=headers)
    assert response.status_code == 422, response.text
    assert error_of(response) == "inputs.prompts: its data does not have the shape ['a']"


async def test_v2_metadata_describes_the_tensors(client, world):
    document = (await client.get("/v2/models/model")).json()
    assert document["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, world.served]}]

"""What holds for every response: ids, the expected bundle, one error shape, metrics."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio


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
async def test_every_response_carries_the_ids(client, world, method, path, status, error_of):
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
async def test_another_expected_bundle_gets_412(client, world, path, error_of):
    response = await client.get(path, headers={"X-Expected-Bundle-Id": "b-ffffffffffffffff"})
    assert response.status_code == 412
    assert error_of(response) == f"X-Expected-Bundle-Id is b-ffffffffffffffff, this server has bundle {world.bundle_id}"


async def test_the_expected_bundle_is_served(client, world):
    assert (await client.get("/v1/ids", headers={"X-Expected-Bundle-Id": world.bundle_id})).status_code == 200


async def test_a_defect_gets_500_without_a_stack_trace(start_server, error_of):
    def defect(prompts):
        raise ZeroDivisionError("secret detail")

    response = await start_server(encode=defect).client.embed(input="a")
    assert response.status_code == 500
    assert error_of(response) == "internal error; the server's log says more"


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
async def test_no_body_is_an_internal_error(client, path, body, error_of):
    response = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in {200, 404, 412, 413, 422}, response.text
    if response.status_code != 200:
        assert error_of(response)


# --- metrics ------------------------------------------------------------------------------------------------------


async def test_metric_names_are_a_public_interface(server, golden):
    await server.client.embed(input="a")
    text = (await server.client.get("/metrics")).text
    described = [line for line in text.splitlines() if line.startswith("# TYPE") and "_created" not in line]
    golden("encoder_server/metrics.txt", "\n".join(sorted(described)) + "\n")


async def test_requests_are_counted_by_route_not_by_path(server):
    await server.client.embed(input="a")
    await server.client.embed(input="")
    await server.client.get("/v1/models/whatever")
    await server.client.get("/any/path/at/all")
    count = lambda endpoint, code: server.sample("retrieval_encoder_requests_total", endpoint=endpoint, code=code)  # noqa: E731
    assert count("/v1/embeddings", "200") == 1
    assert count("/v1/embeddings", "422") == 1
    assert count("/v1/models/{model_name}", "404") == 1
    assert count("none", "404") == 1

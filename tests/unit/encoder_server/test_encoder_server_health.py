"""Liveness and readiness, while serving and while draining."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.asyncio


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


async def test_live_fails_when_the_compute_thread_has_died(server, error_of):
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
    assert (await server.client.embed(input="a")).status_code == 200
    assert (await server.client.retrieve(member_id="known")).status_code == 200
    assert (await server.client.post("/v1/models/model:predict", json={"instances": ["a"]})).status_code == 200
    tensor = {"name": "prompts", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    assert (await server.client.post("/v2/models/model/infer", json={"inputs": [tensor]})).status_code == 200

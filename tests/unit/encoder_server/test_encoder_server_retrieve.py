"""`/v1/retrieve`: three kinds of query, exclusion, filters."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytestmark = pytest.mark.asyncio


def expected_order(world, query, exclude=(), allowed=None) -> list[str]:
    index = world.index()
    found = index.search(np.array([query]), 20, [list(exclude)], allowed)
    return found.ids[0].tolist()


async def test_three_kinds_of_query_for_one_vector_get_one_answer(client, world):
    vector = [float(x) for x in world.vector("mactivity=1")]
    by_features = (await client.retrieve(member={"activity": 1}, k=5)).json()
    by_vector = (await client.retrieve(embedding=vector, bundle_id=world.bundle_id, k=5)).json()
    assert by_features["ids"] == by_vector["ids"] == expected_order(world, vector)[:5]
    assert by_features["scores"] == pytest.approx(by_vector["scores"], abs=1e-6)
    assert by_features["scores"] == sorted(by_features["scores"], reverse=True)
    assert (by_features["bundle_id"], by_features["generation_id"]) == (world.bundle_id, world.generation_id)


async def test_a_member_id_uses_its_stored_vector(client, world):
    assert (await client.retrieve(member_id="known", k=1)).json()["ids"] == ["item-7"]


async def test_a_full_width_embedding_is_cut(client, world):
    whole = [float(x) for x in world.vector("a", world.full)]
    cut = [float(x) for x in world.vector("a", world.served)]
    answers = [(await client.retrieve(embedding=v, bundle_id=world.bundle_id)).json() for v in (whole, cut)]
    assert answers[0]["ids"] == answers[1]["ids"]
    assert answers[0]["scores"] == pytest.approx(answers[1]["scores"], abs=1e-6)


async def test_a_vector_of_another_length_than_one_gets_cosines(client, world):
    vector = world.vector("a")
    answers = [
        (await client.retrieve(embedding=(vector * f).tolist(), bundle_id=world.bundle_id)).json()["scores"]
        for f in (1, 100)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


async def test_k_is_2000_by_default_and_at_most_the_corpus(client, world):
    assert len((await client.retrieve(member_id="known")).json()["ids"]) == 20
    assert len((await client.retrieve(member_id="known", k=21)).json()["ids"]) == 20
    assert len((await client.retrieve(member_id="known", k=3)).json()["ids"]) == 3


async def test_excluded_items_are_absent_and_k_is_still_filled(client, world):
    best = (await client.retrieve(member_id="known", k=6)).json()["ids"]
    answer = (await client.retrieve(member_id="known", k=3, exclude=[*best[:3], "no such item"])).json()
    assert answer["ids"] == best[3:6]


async def test_a_filter_keeps_only_allowed_items(client, world):
    ids = (await client.retrieve(member_id="known", filter={"author": ["odd"]})).json()["ids"]
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
async def test_retrieve_refusals(client, world, body, status, message, error_of):
    body = {key: world.bundle_id if value == "SERVED" else value for key, value in body.items()}
    response = await client.post("/v1/retrieve", json=body)
    assert response.status_code == status
    assert re.search(message, error_of(response))


async def test_without_a_generation_there_is_nothing_to_retrieve(start_server, error_of):
    response = await start_server(index=None).client.retrieve(member={})
    assert response.status_code == 404
    assert "started without an index generation (GENERATION_URI)" in error_of(response)

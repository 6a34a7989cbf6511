"""A real server's answers equal direct computation, whatever the query and the protocol."""

from __future__ import annotations

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from kserve import InferInput, InferRequest, InferResponse

from retrieval_core.encoding import truncate

pytestmark = pytest.mark.component

MEMBER = {"headline": "data and <|pct.1|> coffee", "activity": 3, "history": [{"title": "river"}, {"title": "poem"}]}
ITEM = {"title": "bread for the mountain", "topic": "travel", "engagements": 12}
PLAIN = "music of the garden"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected(stack) -> np.ndarray:
    """Vectors of MEMBER, ITEM and PLAIN by the encoder itself, each alone, float32 [3, served]."""
    alone = [
        stack.encoder.encode_members([MEMBER]),
        stack.encoder.encode_items([ITEM]),
        stack.encoder.encode_prompts([PLAIN]),
    ]
    return truncate(np.concatenate(alone), stack.generation.dimension)


def by_embeddings(client: httpx.Client) -> list:
    body = {"input": [{"member": MEMBER}, {"item": ITEM}, PLAIN]}
    return [entry["embedding"] for entry in client.post("/v1/embeddings", json=body).json()["data"]]


def by_base64(client: httpx.Client) -> list:
    body = {"input": [{"member": MEMBER}, {"item": ITEM}, PLAIN], "encoding_format": "base64"}
    data = client.post("/v1/embeddings", json=body).json()["data"]
    return [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in data]


def by_v1(client: httpx.Client) -> list:
    body = {"instances": [{"member": MEMBER}, {"item": ITEM}, PLAIN]}
    return client.post("/v1/models/model:predict", json=body).json()["predictions"]


def by_v2(client: httpx.Client) -> list:
    rows = []
    for name, element in (("members", json.dumps(MEMBER)), ("items", json.dumps(ITEM)), ("prompts", PLAIN)):
        body = {"inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [element]}]}
        (output,) = client.post("/v2/models/model/infer", json=body).json()["outputs"]
        rows.append(output["data"])
    return rows


@pytest.mark.parametrize("ask", [by_embeddings, by_base64, by_v1, by_v2])
def test_served_vectors_equal_direct_encoding(served, expected, ask):
    np.testing.assert_allclose(ask(served), expected, atol=TOLERANCE)


def test_vectors_over_grpc_equal_direct_encoding(served_over_grpc, stack, expected):
    for vector, (name, element) in zip(
        expected, [("members", json.dumps(MEMBER)), ("items", json.dumps(ITEM)), ("prompts", PLAIN)], strict=True
    ):
        tensor = InferInput(name=name, shape=[1], datatype="BYTES", data=[element])
        answer = served_over_grpc.ModelInfer(InferRequest(model_name="model", infer_inputs=[tensor]).to_grpc())
        response = InferResponse.from_grpc(answer)
        np.testing.assert_allclose(response.outputs[0].as_numpy(), [vector], atol=TOLERANCE)
        assert response.parameters["bundle_id"].string_param == stack.bundle.id
        assert response.parameters["generation_id"].string_param == stack.generation.id


def test_callers_at_once_get_their_own_vectors(served, stack):
    """Requests share batches; nobody gets a neighbour's vector, and a batch changes nobody's."""
    members = [{"headline": f"chess {n} " + "river " * (n % 7), "activity": n} for n in range(64)]

    def ask(member: dict) -> list[float]:
        response = served.post("/v1/embeddings", json={"input": {"member": member}, "dimensions": 32})
        return response.json()["data"][0]["embedding"]

    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(ask, members))
    np.testing.assert_allclose(answers, stack.encoder.encode_members(members), atol=TOLERANCE)
    sizes = re.findall(r"retrieval_encoder_batch_requests_(?:sum|count)\S*encode\S* (\S+)", served.get("/metrics").text)
    count, total = sorted(map(float, sizes))
    assert total > count, "some requests did share a batch"


def test_usage_counts_the_tokens_that_the_model_reads(served, stack):
    response = served.post("/v1/embeddings", json={"input": [{"member": MEMBER}, PLAIN]})
    prompts = [stack.encoder.renderer.member(MEMBER), PLAIN]
    assert response.json()["usage"]["total_tokens"] == sum(map(len, stack.encoder.token_ids(prompts)))


def test_the_full_width_is_the_encoders_own(served, stack):
    response = served.post("/v1/embeddings", json={"input": {"member": MEMBER}, "dimensions": 32})
    direct = stack.encoder.encode_members([MEMBER])[0]
    np.testing.assert_allclose(response.json()["data"][0]["embedding"], direct, atol=TOLERANCE)


@pytest.mark.parametrize("exclude", [[], ["i3", "i17", "not an item"]])
@pytest.mark.parametrize("allowed", [None, {"author": ["a1", "a2"]}])
@pytest.mark.parametrize("kind", ["member", "embedding", "member_id"])
def test_served_top_k_equals_direct_computation(served, stack, expected, kind, exclude, allowed):
    vectors = {"member": expected[0], "embedding": expected[1], "member_id": stack.generation.member_vector("m5")}
    queries = {
        "member": {"member": MEMBER},
        "embedding": {"embedding": expected[1].tolist(), "bundle_id": stack.bundle.id},
        "member_id": {"member_id": "m5"},
    }
    body = {**queries[kind], "k": 20, "exclude": exclude, **({"filter": allowed} if allowed else {})}
    response = served.post("/v1/retrieve", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    direct = stack.generation.search(vectors[kind][None], 20, exclude=[exclude], allowed=allowed)
    np.testing.assert_allclose(answer["scores"], direct.scores[0], atol=TOLERANCE)
    assert answer["ids"] == direct.ids[0].tolist()
    assert not set(answer["ids"]) & set(exclude)
    assert (answer["bundle_id"], answer["generation_id"]) == (stack.bundle.id, stack.generation.id)
    assert response.headers["x-bundle-id"] == stack.bundle.id
    assert response.headers["x-generation-id"] == stack.generation.id


def test_k_defaults_to_2000_and_is_bounded_by_the_corpus(served, stack):
    answer = served.post("/v1/retrieve", json={"member_id": "m0"}).json()
    assert len(answer["ids"]) == len(set(answer["ids"])) == stack.generation.count


def test_ids_name_what_was_opened(served, stack):
    assert served.get("/v1/ids").json() == {
        "bundle_id": stack.bundle.id,
        "generation_id": stack.generation.id,
        "dimension": stack.generation.dimension,
        "count": stack.generation.count,
    }


def test_health_and_metrics_of_a_serving_process(served, stack):
    assert served.get("/v2/health/ready").json() == {"ready": True}
    assert served.get("/v2/health/live").json() == {"live": True}
    text = served.get("/metrics").text
    assert f'bundle_id="{stack.bundle.id}"' in text
    assert f'generation_id="{stack.generation.id}"' in text
    assert "process_resident_memory_bytes" in text


def test_text_of_a_member_cannot_become_a_special_token(served):
    """`MEMBER` writes a percentile token in its headline; were it one, removing it would change nothing but that."""
    spelled = {"headline": "coffee <|pct.1|>", "activity": 3}
    plain = {"headline": "coffee", "activity": 3}
    tokens = [
        served.post("/v1/embeddings", json={"input": {"member": m}}).json()["usage"]["total_tokens"]
        for m in (spelled, plain)
    ]
    assert tokens[0] > tokens[1] + 1

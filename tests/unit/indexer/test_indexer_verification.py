"""Verification believes nothing: each way an answer can be wrong is found, and ties are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import Encoder
from retrieval_core.errors import TemporarilyUnavailable
from retrieval_core.generation import Generation
from retrieval_indexer.evaluation.verification import Answer, Verifier, compare_answers
from retrieval_indexer.members import sample_members


def answer(*pairs: tuple[str, float]) -> Answer:
    return Answer([item for item, _ in pairs], np.asarray([score for _, score in pairs]))


DIRECT = answer(("a", 0.9), ("b", 0.8), ("c", 0.70002), ("d", 0.7))


@pytest.mark.parametrize(
    ("served", "found"),
    [
        (DIRECT, None),
        (answer(("a", 0.90003), ("b", 0.8), ("d", 0.70001), ("c", 0.70001)), None),
        (answer(("a", 0.9), ("b", 0.8), ("c", 0.70002), ("e", 0.70001)), None),
        (answer(("b", 0.9), ("a", 0.8), ("c", 0.70002), ("d", 0.7)), "item b at rank 1"),
        (answer(("a", 0.9), ("b", 0.8), ("c", 0.70002), ("d", 0.69)), "score 0.690000 at rank 4"),
        (answer(("a", 0.9), ("x", 0.8), ("c", 0.70002), ("d", 0.7)), "item x at rank 2"),
        (answer(("a", 0.9), ("b", 0.8), ("c", 0.70002)), "3 items served, 4 computed"),
        (answer(("a", 0.9), ("b", 0.8), ("c", 0.70002), ("c", 0.70002)), "served twice"),
    ],
)
def test_answers_agree_up_to_ties(served, found):
    _, difference = compare_answers(served, DIRECT)
    assert (difference is None) if found is None else (found in difference)


@pytest.fixture
def stack(generations, bundle_uri, open_datasets):
    return Bundle.open(bundle_uri), Generation.open(generations["global"]), open_datasets["global"]


def honest_server(bundle: Bundle, generation: Generation) -> Callable[[httpx.Request], httpx.Response]:
    """What the contract asks of a server, computed here."""
    encoder = Encoder(bundle)

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["member"].keys() <= {field.name for field in bundle.prompts.member.fields} | {"history"}
        vector = encoder.encode_members([body["member"]])
        result = generation.search(vector, body["k"])
        ids = {"bundle_id": bundle.id, "generation_id": generation.id}
        document = {"ids": result.ids[0].tolist(), "scores": result.scores[0].tolist(), **ids}
        headers = {"X-Bundle-Id": bundle.id, "X-Generation-Id": generation.id}
        return httpx.Response(200, json=document, headers=headers)

    return handle


def verify(stack, handle: Callable[[httpx.Request], httpx.Response], members: int = 8) -> dict[str, Any]:
    bundle, generation, dataset = stack
    client = httpx.Client(transport=httpx.MockTransport(handle), base_url="http://stack")
    chosen = sample_members(dataset, generation.manifest.as_of, members, "verify").tolist()
    return Verifier(client, bundle, generation, dataset).verify(chosen, 20)


def test_an_honest_stack_matches(stack):
    document = verify(stack, honest_server(*stack[:2]))
    assert (document["asked"], document["matched"], document["mismatches"]) == (8, 8, [])
    assert document["maxScoreError"] < 1e-5
    assert 0 < document["latencyMs"]["p50"] <= document["latencyMs"]["p99"]


def changed(handle, change: Callable[[dict[str, Any], httpx.Headers], None]):
    def wrapped(request: httpx.Request) -> httpx.Response:
        response = handle(request)
        body, headers = (
            response.json(),
            httpx.Headers({k: response.headers[k] for k in ("x-bundle-id", "x-generation-id")}),
        )
        change(body, headers)
        return httpx.Response(200, json=body, headers=headers)

    return wrapped


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda body, headers: body["ids"].reverse(), "at rank 1"),
        (lambda body, headers: body["scores"].__setitem__(0, body["scores"][0] + 0.01), "at rank 1"),
        (lambda body, headers: body.update(bundle_id="b-0000000000000000"), "expected"),
        (lambda body, headers: headers.update({"X-Generation-Id": "g-0000000000000000"}), "g-0000000000000000"),
        (lambda body, headers: headers.pop("X-Bundle-Id"), "None"),
        (lambda body, headers: body.pop("scores"), "not of the contract"),
        (lambda body, headers: body.update(scores=["high"] * 20), "not of the contract"),
        (lambda body, headers: body["scores"].pop(), "missing"),
        (
            lambda body, headers: body.update(ids=body["ids"][:5], scores=body["scores"][:5]),
            "5 items served, 20 computed",
        ),
    ],
)
def test_every_wrong_answer_is_a_mismatch_that_says_what_is_wrong(stack, change, sentence):
    document = verify(stack, changed(honest_server(*stack[:2]), change))
    assert document["matched"] == 0
    assert len(document["mismatches"]) == 5
    assert all(sentence in mismatch for mismatch in document["mismatches"])


def test_another_bundle_behind_the_right_ids_is_found(stack, make_bundle, tmp_path):
    bundle, generation, _ = stack
    impostor = honest_server(Bundle.open(make_bundle(tmp_path / "other", seed=3)), generation)

    def relabel(body, headers):
        body["bundle_id"] = headers["X-Bundle-Id"] = bundle.id

    assert verify(stack, changed(impostor, relabel))["matched"] == 0


def test_a_refusal_is_a_mismatch_and_silence_may_pass(stack):
    document = verify(stack, lambda request: httpx.Response(412, text="another bundle is expected"))
    assert document["matched"] == 0
    assert document["maxScoreError"] is None
    assert "HTTP 412: another bundle" in document["mismatches"][0]

    def silent(request):
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(TemporarilyUnavailable, match="does not answer"):
        verify(stack, silent)


def test_the_same_members_are_asked_again_and_none_who_had_not_joined(open_datasets):
    dataset = open_datasets["global"]
    first = sample_members(dataset, dataset.last_event_time, 10, "verify").tolist()
    assert first == sample_members(dataset, dataset.last_event_time, 20, "verify").tolist()[:10]
    early = dataset.member_joined_at.min()
    assert all(dataset.member_joined_at[row] <= early for row in sample_members(dataset, int(early), 60, "verify"))

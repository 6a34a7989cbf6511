"""Bodies that are refused, and the sentence that says why."""

from __future__ import annotations

import orjson
import pytest

from retrieval_encoder_server.refusals import Malformed
from retrieval_encoder_server.schemas import (
    EmbeddingsRequest,
    FeaturesInput,
    PredictRequest,
    PromptInput,
    RetrieveRequest,
    parse,
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "found no query, expected one of embedding, member, member_id"),
        ({"member": {}, "member_id": "a"}, "found member and member_id, expected one of"),
        ({"embedding": [1.0]}, "embedding needs bundle_id"),
        ({"embedding": [1.0, "2"], "bundle_id": "b"}, r"embedding\[1\]: found '2', expected a valid number"),
        ({"embedding": 1.0, "bundle_id": "b"}, "embedding: found 1.0, expected a valid array"),
        ({"member": []}, "member: found .*, expected an object"),
        ({"member_id": ""}, "member_id: "),
        ({"member_id": "a", "k": 0}, "k: found 0, expected"),
        ({"member_id": "a", "k": 100_001}, "k: found 100001"),
        ({"member_id": "a", "k": "10"}, "k: found '10', expected a valid integer"),
        ({"member_id": "a", "k": True}, "k: found True, expected a valid integer"),
        ({"member_id": "a", "exclud": ["x"]}, "exclud: unknown field"),
        ({"member_id": "a", "exclude": "x"}, "exclude: found 'x', expected a valid array"),
        ({"member_id": "a", "exclude": [1]}, r"exclude\[0\]: found 1, expected a valid string"),
        ({"member_id": "a", "exclude": ["x"] * 20_001}, "exclude: "),
        ({"member_id": "a", "filter": {"author": "x"}}, r"filter\.author: found 'x', expected a valid array"),
        ({"member_id": "a", "filter": {"author": ["x"] * 1001}}, r"filter\.author: "),
    ],
)
def test_a_wrong_retrieve_body_names_the_field(body, message):
    with pytest.raises(Malformed, match=message):
        parse(RetrieveRequest, orjson.dumps(body))


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"member_id": "\xff"}'])
def test_a_body_that_is_no_json_object_is_malformed(body):
    with pytest.raises(Malformed):
        parse(RetrieveRequest, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    with pytest.raises(Malformed):
        parse(RetrieveRequest, f'{{"embedding": [{number}], "bundle_id": "b"}}'.encode())


def test_a_deeply_nested_body_is_refused_without_a_crash():
    with pytest.raises(Malformed):
        parse(RetrieveRequest, b'{"member": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_many_mistakes_give_a_short_answer():
    body = {"embedding": ["x"] * 10_000, "bundle_id": "b"}
    with pytest.raises(Malformed, match="and 9995 more") as refused:
        parse(RetrieveRequest, orjson.dumps(body))
    assert len(str(refused.value)) < 1000


def test_whole_numbers_are_numbers_in_an_embedding():
    assert parse(RetrieveRequest, b'{"embedding": [1, 0.5], "bundle_id": "b"}').embedding == [1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", [PromptInput("a", "input")]),
        (["a", "b"], [PromptInput("a", "input[0]"), PromptInput("b", "input[1]")]),
        ({"member": {"x": 1}}, [FeaturesInput("member", {"x": 1}, "input.member")]),
        ([{"item": {}}, "b"], [FeaturesInput("item", {}, "input[0].item"), PromptInput("b", "input[1]")]),
        ([], []),
    ],
)
def test_inputs_know_their_path(given, expected):
    assert parse(EmbeddingsRequest, {"input": given}).inputs() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], r"input\[0\]: found 1, expected a string"),
        ([[1, 2]], r"input\[0\]: found \[1, 2\], expected a string"),
        ({"member": {}, "item": {}}, r"input: found an object with \['item', 'member'\], expected a string"),
        ([{"member": "x"}], r"input\[0\]: found an object with \['member'\]"),
        ([None], r"input\[0\]: found None"),
    ],
)
def test_inputs_of_another_form_are_refused(given, message):
    with pytest.raises(Malformed, match=message):
        parse(EmbeddingsRequest, {"input": given}).inputs()


def test_v1_instances_are_inputs():
    assert parse(PredictRequest, {"instances": ["a"]}).inputs() == [PromptInput("a", "instances[0]")]


@pytest.mark.parametrize("change", [{"encoding_format": "hex"}, {"dimensions": 0}, {"dimensions": "4"}, {"modle": "m"}])
def test_unknown_options_of_embeddings_are_refused(change):
    with pytest.raises(Malformed, match=next(iter(change))):
        parse(EmbeddingsRequest, {"input": "a", **change})

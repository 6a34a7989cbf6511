"""PromptSpec: bounds and cross-field rules, told by the field's path; the default for a dataset."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from retrieval_core.dataset.spec import DatasetSpec
from retrieval_core.errors import BadInput
from retrieval_core.prompts import PromptSpec

VALID: dict[str, Any] = {
    "formatVersion": 1,
    "member": {
        "system": "A member of a professional feed.",
        "fields": [
            {"name": "headline", "rendering": "text", "maxTokens": 24},
            {"name": "industry", "rendering": "category", "maxTokens": 12},
            {"name": "activity", "rendering": "percentile"},
        ],
        "history": {"maxItems": 20, "fields": [{"name": "title", "rendering": "text", "maxTokens": 16}]},
        "maxTokens": 256,
    },
    "item": {
        "system": "",
        "fields": [
            {"name": "title", "rendering": "text", "maxTokens": 32},
            {"name": "topic", "rendering": "category"},
            {"name": "engagements", "rendering": "percentile"},
        ],
        "maxTokens": 96,
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """VALID with one value replaced: `item.fields.0.name`."""
    document = copy.deepcopy(VALID)
    *parents, last = path.split(".")
    node: Any = document
    for part in parents:
        node = node[int(part)] if part.isdecimal() else node[part]
    node[int(last) if last.isdecimal() else last] = value
    return document


def test_the_example_of_the_contract_survives_a_round_trip():
    spec = PromptSpec.parse(VALID)
    assert PromptSpec.parse(spec.document()) == spec
    assert spec.document()["member"]["history"]["maxItems"] == 20
    assert spec.percentile_names() == ("item.engagements", "member.activity")


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("formatVersion", 2, "formatVersion: found 2, expected 1"),
        ("item.fields.0.rendering", "digits", "item.fields[0].rendering: found 'digits'"),
        ("item.fields.0.maxTokens", 0, "item.fields[0].maxTokens: found 0"),
        ("item.fields.0.name", "a|>b", "item.fields[0].name: found 'a|>b'"),
        ("item.fields.0.colour", "red", "item.fields[0].colour: unknown field"),
        ("item.fields", [], "item.fields: found []"),
        ("item.fields.2.maxTokens", 3, "item.fields[2]: a percentile is always one token; remove maxTokens"),
        ("item.fields.1.name", "title", "item: field 'title' appears twice"),
        ("item.maxTokens", 35, "item: its fields may take 36 tokens"),
        ("member.history.maxItems", 0, "member.history.maxItems: found 0"),
        ("member.history.fields.0.maxTokens", None, "member.history: 'title' needs maxTokens"),
        (
            "member.history.fields.0",
            {"name": "ageDays", "rendering": "percentile"},
            "member.history: 'ageDays' changes",
        ),
        ("member.fields.0.name", "history", "member: 'history' is not a field; use member.history"),
        ("member.maxTokens", 50, "member: the profile may take 40 tokens and one past item 17"),
        ("member", None, "member: found None"),
    ],
)
def test_a_wrong_document_is_refused_with_the_path_of_the_field(path, value, complaint):
    with pytest.raises(BadInput) as refusal:
        PromptSpec.parse(changed(path, value))
    assert complaint in str(refusal.value)


def test_all_wrong_fields_are_named_at_once():
    document = changed("item.fields.0.rendering", "digits")
    document["member"]["maxTokens"] = "many"
    with pytest.raises(BadInput) as refusal:
        PromptSpec.parse(document)
    assert "item.fields[0].rendering" in str(refusal.value)
    assert "member.maxTokens" in str(refusal.value)


def dataset(members: dict[str, Any], items: dict[str, Any]) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "formatVersion": 1,
            "name": "test",
            "provenance": "synthetic",
            "members": {"id": "member_id", **members},
            "items": {"id": "item_id", **items},
            "interactions": {"member": "m", "item": "i", "time": "t", "engaged": "e"},
            "split": {"mode": "global", "testFraction": 0.1},
        }
    )


def test_the_default_shows_every_declared_column_in_the_rendering_of_its_kind():
    spec = PromptSpec.default_for(
        dataset(
            {"text": ["headline"], "category": ["industry"], "count": ["years"]},
            {"text": ["title"], "category": ["topic"], "count": ["words"], "createdAt": "created_at"},
        )
    )
    shown = [(scope, field.name, field.rendering) for scope, field in spec.scoped_fields()]
    assert shown == [
        ("member", "headline", "text"),
        ("member", "industry", "category"),
        ("member", "years", "percentile"),
        ("member", "activity", "percentile"),
        ("history", "title", "text"),
        ("item", "title", "text"),
        ("item", "topic", "category"),
        ("item", "words", "percentile"),
        ("item", "engagements", "percentile"),
        ("item", "ageDays", "percentile"),
    ]


@pytest.mark.parametrize(
    ("members", "items", "history", "item"),
    [
        ({}, {}, [], ["engagements"]),
        ({}, {"category": ["genre"]}, ["genre"], ["genre", "engagements"]),
        (
            {},
            {"text": ["title", "body"], "category": ["genre"]},
            ["title", "body"],
            ["title", "body", "genre", "engagements"],
        ),
    ],
)
def test_the_default_of_a_poor_dataset_is_still_a_valid_spec(members, items, history, item):
    spec = PromptSpec.default_for(dataset(members, items))
    assert [field.name for field in spec.member.fields] == ["activity"]
    assert [field.name for field in spec.member.history.fields] == history if history else spec.member.history is None
    assert [field.name for field in spec.item.fields] == item


def test_a_column_whose_name_cannot_be_in_a_token_is_named():
    with pytest.raises(BadInput, match=r"dataset column 'a\|b'"):
        PromptSpec.default_for(dataset({}, {"text": ["a|b"]}))

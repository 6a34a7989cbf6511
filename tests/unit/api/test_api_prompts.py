"""Prompts of a manifest: what retrieval_core reads in a training is taken, and passed on as it was typed.

The control plane does not import core, so its types say the same once more; here both are asked.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from retrieval_core.dataset import spec as core_dataset
from retrieval_core.prompts import spec as core
from retrieval_operator.api import prompts as api
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.domain.commands import train_config
from retrieval_operator.domain.identity import digest, revision_hash

TITLE = {"name": "title", "rendering": "text"}
BOUNDED = {**TITLE, "maxTokens": 16}
COUNT = {"name": "engagements", "rendering": "percentile"}
FULL: dict[str, Any] = {
    "formatVersion": 1,
    "member": {
        "system": "A member of a professional feed.",
        "fields": [
            {"name": "headline", "rendering": "text", "maxTokens": 24},
            {"name": "industry", "rendering": "category", "maxTokens": 12},
            {"name": "activity", "rendering": "percentile"},
        ],
        "history": {"maxItems": 20, "fields": [BOUNDED]},
        "maxTokens": 256,
    },
    "item": {
        "system": "",
        "fields": [{**TITLE, "maxTokens": 32}, {"name": "topic", "rendering": "category"}, COUNT],
        "maxTokens": 96,
    },
}
MEMBER, ITEM, FIELDS = ("member",), ("item",), ("item", "fields")
HISTORY = ("member", "history")

# A value at a path of FULL, and whether it is still a prompt.
CHANGES: dict[str, tuple[tuple[str | int, ...], Any, bool]] = {
    "as in docs/contracts.md": (("formatVersion",), 1, True),
    "another format": (("formatVersion",), 2, False),
    "format nought": (("formatVersion",), 0, False),
    "an unknown field": (("percentiles",), {}, False),
    "an unknown field of a side": ((*ITEM, "history"), {"maxItems": 1, "fields": [BOUNDED]}, False),
    "no member": (MEMBER, ..., False),
    "no item": (ITEM, ..., False),
    "no history": (HISTORY, ..., True),
    "history that is null": (HISTORY, None, True),
    "no system": ((*MEMBER, "system"), ..., True),
    "a long system": ((*ITEM, "system"), "ä" * 4096, True),
    "a longer system": ((*ITEM, "system"), "ä" * 4097, False),
    "system that is null": ((*ITEM, "system"), None, False),
    "no budget": ((*ITEM, "maxTokens"), ..., False),
    "a budget of nought": ((*ITEM, "maxTokens"), 0, False),
    "a budget of a fraction": ((*ITEM, "maxTokens"), 96.5, False),
    "the largest budget": ((*ITEM, "maxTokens"), 32_768, True),
    "more than that": ((*ITEM, "maxTokens"), 32_769, False),
    "just enough for an item": ((*ITEM, "maxTokens"), 36, True),
    "one too few for an item": ((*ITEM, "maxTokens"), 35, False),
    "just enough for a member with one past item": ((*MEMBER, "maxTokens"), 57, True),
    "one too few for a member with one past item": ((*MEMBER, "maxTokens"), 56, False),
    "too few for a profile": ((*MEMBER, "maxTokens"), 39, False),
    "no fields": (FIELDS, [], False),
    "fields that are a word": (FIELDS, "title", False),
    "32 fields": (FIELDS, [{**TITLE, "name": f"f{n}"} for n in range(32)], True),
    "33 fields": (FIELDS, [{**TITLE, "name": f"f{n}"} for n in range(33)], False),
    "a field twice": (FIELDS, [TITLE, {**TITLE, "rendering": "category"}], False),
    "a field without a rendering": (FIELDS, [{"name": "title"}], False),
    "an unknown rendering": (FIELDS, [{**TITLE, "rendering": "number"}], False),
    "an unknown field of a field": (FIELDS, [{**TITLE, "maxtokens": 3}], False),
    "a field's budget that is null": (FIELDS, [{**TITLE, "maxTokens": None}], True),
    "a percentile with a budget": (FIELDS, [{**COUNT, "maxTokens": 1}], False),
    "a percentile with a budget that is null": (FIELDS, [{**COUNT, "maxTokens": None}], True),
    "a field's budget of nought": (FIELDS, [{**TITLE, "maxTokens": 0}], False),
    "a field named history, of an item": (FIELDS, [{**TITLE, "name": "history"}], True),
    "a field named history, of a member": ((*MEMBER, "fields"), [{**TITLE, "name": "history"}], False),
    "a name of 64 characters": (FIELDS, [{**TITLE, "name": "ü" * 64}], True),
    "a name of 65 characters": (FIELDS, [{**TITLE, "name": "ü" * 65}], False),
    "no name": (FIELDS, [{**TITLE, "name": ""}], False),
    **{
        f"a name with {character!r}": (FIELDS, [{**TITLE, "name": f"a{character}"}], False)
        for character in "<|>\n\x00\x1f\x7f"
    },
    **{
        f"a name with {character!r} too": (FIELDS, [{**TITLE, "name": f"{character}a"}], True)
        for character in " .:/\x80語"
    },
    "no past items": ((*HISTORY, "maxItems"), 0, False),
    "1000 past items": ((*HISTORY, "maxItems"), 1000, True),
    "1001 past items": ((*HISTORY, "maxItems"), 1001, False),
    "past items without a number of them": ((*HISTORY, "maxItems"), ..., False),
    "past items without fields": ((*HISTORY, "fields"), [], False),
    "past items without a budget": ((*HISTORY, "fields"), [TITLE], False),
    "past items that show a count": ((*HISTORY, "fields"), [BOUNDED, COUNT], False),
    "past items that show their age": ((*HISTORY, "fields"), [{**COUNT, "name": "ageDays"}], False),
    "past items that show a column's percentile": ((*HISTORY, "fields"), [{**COUNT, "name": "price"}], True),
    "past items that show something twice": ((*HISTORY, "fields"), [BOUNDED, BOUNDED], False),
}


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(FULL)
    *parents, leaf = path
    target: Any = document
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[leaf]
    else:
        target[leaf] = value
    return document


def accepts(kind: type[BaseModel], document: Any) -> bool:
    try:
        kind.model_validate(document)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("title", CHANGES)
def test_both_take_and_refuse_the_same_documents(title: str) -> None:
    path, value, is_good = CHANGES[title]
    document = changed(path, value)
    assert (accepts(api.Prompts, document), accepts(core.PromptSpec, document)) == (is_good, is_good)


NAMES = st.sampled_from(["title", "topic", "history", "engagements", "ageDays", "x" * 64, "a<b", ""])
FIELD = st.fixed_dictionaries(
    {"name": NAMES, "rendering": st.sampled_from(["text", "category", "percentile"])},
    optional={"maxTokens": st.one_of(st.integers(0, 12), st.none())},
)
FIELD_LIST = st.lists(FIELD, min_size=1, max_size=3)
BUDGET = st.integers(1, 40)
PAST = st.fixed_dictionaries({"maxItems": st.integers(0, 2), "fields": FIELD_LIST})
DOCUMENTS = st.fixed_dictionaries(
    {
        "member": st.fixed_dictionaries({"fields": FIELD_LIST, "maxTokens": BUDGET}, optional={"history": PAST}),
        "item": st.fixed_dictionaries({"fields": FIELD_LIST, "maxTokens": BUDGET}, optional={"system": st.just("")}),
    },
    optional={"formatVersion": st.just(1)},
)


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS)
def test_both_take_and_refuse_the_same_random_documents(document: dict[str, Any]) -> None:
    assert accepts(api.Prompts, document) == accepts(core.PromptSpec, document)


@pytest.mark.parametrize("value", ["96", 96.0, True])
def test_only_here_a_number_must_be_an_integer_as_it_must_for_the_api_server(value: Any) -> None:
    document = changed((*ITEM, "maxTokens"), value)
    assert not accepts(api.Prompts, document)


def bounds(kind: type[BaseModel]) -> Any:
    """The JSON schema without words for people, and without what the two write differently."""
    document = json.dumps(kind.model_json_schema())
    for ours, theirs in (("PromptHistory", "HistorySpec"), ("Prompts", "PromptSpec")):
        document = document.replace(f'"{ours}"', f'"{theirs}"').replace(f"/{ours}", f"/{theirs}")
    return without_words(json.loads(document))


def without_words(node: Any) -> Any:
    if isinstance(node, list):
        return [without_words(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    node = {"minimum": 1, "maximum": 1} | node if node.get("const") == 1 else node
    left_out = {"title", "description", "default", "const", "additionalProperties"}
    return {key: without_words(inner) for key, inner in node.items() if key not in left_out or key == inner}


def test_both_have_the_same_fields_and_bounds() -> None:
    assert bounds(api.Prompts) == bounds(core.PromptSpec)
    assert (api.ITEM_DERIVED, api.MAX_PROMPT_TOKENS) == (core_dataset.ITEM_DERIVED, core.MAX_PROMPT_TOKENS)


def model_with(prompts: dict[str, Any]) -> RetrievalModel:
    spec = {
        "storage": {"uri": "/store"},
        "data": {"uri": "/data", "revision": "1"},
        "model": {"base": "preset:tiny", "prompts": prompts},
        "promotion": {"gates": [{"min": "0.2"}]},
    }
    metadata = {"name": "feed"}
    document = {"apiVersion": "retrieval-operator.io/v1alpha1", "kind": "RetrievalModel", "metadata": metadata}
    return parse_manifest({**document, "spec": spec}, "feed.yaml")


SMALL = {side: {"fields": [TITLE], "maxTokens": 9} for side in ("member", "item")}


@pytest.mark.parametrize("typed", [SMALL, FULL], ids=["small", "full"])
def test_what_was_typed_is_what_is_hashed_and_what_the_trainer_reads(typed: dict[str, Any]) -> None:
    model = model_with(typed)
    assert train_config(model, revision="r", data_uri="/data")["prompts"] == typed
    hashed = {"model": {"base": "preset:tiny", "prompts": typed}, "data": "1", "training": {}, "slot": ""}
    assert revision_hash(model.spec, "") == digest("revision", hashed)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS.filter(lambda document: accepts(api.Prompts, document)))
def test_nothing_is_added_to_what_was_typed(typed: dict[str, Any]) -> None:
    assert model_with(typed).spec.model.explicit()["prompts"] == typed


def test_a_default_written_down_is_another_document() -> None:
    """As it was before prompts had types: who writes a default down fixes it."""
    written = {"formatVersion": 1, **SMALL}
    assert revision_hash(model_with(SMALL).spec, "") != revision_hash(model_with(written).spec, "")

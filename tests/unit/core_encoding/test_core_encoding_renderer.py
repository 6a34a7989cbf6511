# ruff: noqa: RUF001 - look-alikes of special tokens are what is tested
"""Rendering: order, budgets, truncation, history, and what each kind of value looks like."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from retrieval_core.errors import BadInput
from retrieval_core.prompts import Percentiles, PromptRenderer, PromptSpec, add_tokens


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, so a token is an ASCII character and budgets can be counted by eye. BOS, no EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0} | {c: i for i, c in enumerate(alphabet, start=1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def field(name: str, rendering: str = "text", max_tokens: int | None = None) -> dict[str, Any]:
    return {"name": name, "rendering": rendering, "maxTokens": max_tokens}


def renderer(
    *,
    item: list[dict[str, Any]] | None = None,
    member: list[dict[str, Any]] | None = None,
    history: dict[str, Any] | None = None,
    system: str = "",
    max_tokens: int = 100,
) -> PromptRenderer:
    spec = PromptSpec.parse(
        {
            "member": {"fields": member or [field("headline")], "history": history, "maxTokens": max_tokens},
            "item": {"system": system, "fields": item or [field("title")], "maxTokens": max_tokens},
        }
    )
    percentiles = Percentiles.fit(spec, dict.fromkeys(spec.percentile_names(), np.array([1, 2, 3, 4])))
    tokenizer = byte_tokenizer()
    add_tokens(tokenizer, None, spec, percentiles, seed=0)
    return PromptRenderer(spec, percentiles, tokenizer)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("  two \t\r\n lines\u2028and\u00a0spaces\x00\x1b ", "two lines and spaces"),
        ("a\ud800b", "a\ufffdb"),
        (["one", "", "two"], "one, two"),
        ([], ""),
        ("", ""),
        (None, ""),
        (12, "12"),
        (np.int64(12), "12"),
        (3.5, "3.5"),
        (1234567.0, "1.23457e+06"),
        (float("nan"), ""),
    ],
)
def test_values_of_a_text_field(value, shown):
    assert renderer().item({"title": value}) == f"<|item.title|>{shown}"


@pytest.mark.parametrize(
    ("value", "shown"), [(2, "50"), (2.0, "50"), (np.float32(2), "50"), (0, "zero"), (None, "unknown")]
)
def test_values_of_a_percentile_field(value, shown):
    rendered = renderer(item=[field("words", "percentile")]).item({"words": value})
    assert rendered == f"<|item.words|><|pct.{shown}|>"


@pytest.mark.parametrize(
    ("fields", "features", "complaint"),
    [
        ([field("title")], {"title": {"a": 1}}, "item.title: found {'a': 1}, expected a text"),
        ([field("title")], {"title": ["a", 1]}, "item.title: found ['a', 1]"),
        ([field("title")], {"title": True}, "item.title: found True"),
        ([field("words", "percentile")], {"words": "12"}, "item.words: found '12', expected a number or null"),
        ([field("words", "percentile")], {"words": False}, "item.words: found False"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(fields, features, complaint):
    with pytest.raises(BadInput, match=re.escape(complaint)):
        renderer(item=fields).item(features)


@pytest.mark.parametrize("history", ["x", ["x"], {"title": "x"}])
def test_a_history_that_is_not_a_list_of_items_is_refused(history):
    with pytest.raises(BadInput, match=r"member\.history"):
        renderer(history={"maxItems": 2, "fields": [field("title", max_tokens=5)]}).member({"history": history})


@pytest.mark.parametrize(
    ("text", "budget", "shown"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("unbreakable", 6, "unbrea"),
        ("a unbreakable", 9, "a unbreak"),  # cutting at the space would lose more than half
        ("ééé", 5, "éé"),  # two bytes each: never half a character
        ("日本", 2, ""),
    ],
)
def test_a_long_text_is_cut_at_white_space_unless_that_loses_half_of_it(text, budget, shown):
    assert renderer(item=[field("title", max_tokens=budget)]).item({"title": text}) == f"<|item.title|>{shown}"


def test_a_long_list_is_cut_between_its_values():
    rendered = renderer(item=[field("topic", "category", 16)]).item({"topic": ["deep learning", "music", "art"]})
    assert rendered == "<|item.topic|>deep learning"


def test_a_text_without_bound_takes_what_the_prompt_has_left_for_it():
    """100 tokens, less BOS, two field tokens, one percentile and the first text: 90 are left for the second."""
    rendered = renderer(item=[field("title", max_tokens=6), field("body"), field("words", "percentile")])
    text = rendered.item({"title": "abcdefgh", "body": "x" * 500, "words": 2})
    assert text == "<|item.title|>abcdef<|item.body|>" + "x" * 89 + "<|item.words|><|pct.50|>"
    assert len(byte_ids(rendered, text)) == 100


def byte_ids(rendering: PromptRenderer, prompt: str) -> list[int]:
    tokenizer = byte_tokenizer()
    add_tokens(tokenizer, None, rendering.spec, rendering.percentiles, seed=0)
    return tokenizer(prompt)["input_ids"]


def past(*titles: str) -> list[dict[str, str]]:
    return [{"title": title} for title in titles]


@pytest.mark.parametrize(
    ("max_tokens", "titles"),
    [
        (30, ["bbbb", "cccc", "dddd"]),  # maxItems
        (19, ["bbbb", "cccc", "dddd"]),  # BOS, field, 2 for the headline, 3 x (token + 4): exactly
        (18, ["cccc", "dddd"]),
        (13, ["dddd"]),
        (12, ["dddd"]),
    ],
)
def test_a_history_keeps_the_newest_items_that_fit_oldest_first(max_tokens, titles):
    rendering = renderer(
        member=[field("headline", max_tokens=2)],
        history={"maxItems": 3, "fields": [field("title", max_tokens=4)]},
        max_tokens=max_tokens,
    )
    prompt = rendering.member({"headline": "hi", "history": past("aaaa", "bbbb", "cccc", "dddd")})
    assert prompt == "<|member.headline|>hi" + "".join(f"<|history.title|>{title}" for title in titles)
    assert len(byte_ids(rendering, prompt)) <= max_tokens


def test_a_past_item_that_does_not_fit_ends_the_history_even_if_an_older_one_would_fit():
    rendering = renderer(
        member=[field("headline", max_tokens=1)],
        history={"maxItems": 3, "fields": [field("title", max_tokens=8)]},
        max_tokens=12,
    )
    prompt = rendering.member({"history": past("a", "bbbb bbb", "c")})
    assert prompt == "<|member.headline|><|history.title|>c"


@pytest.mark.parametrize("history", [None, [], "absent"])
def test_a_member_without_history_has_a_prompt(history):
    rendering = renderer(history={"maxItems": 3, "fields": [field("title", max_tokens=8)]})
    features = {} if history == "absent" else {"history": history}
    assert rendering.member(features) == "<|member.headline|>"


def test_a_system_text_that_leaves_no_room_is_refused_with_the_numbers():
    with pytest.raises(BadInput, match=r"item\.maxTokens is 10, but its system text takes 10"):
        renderer(system="long enough", max_tokens=10)


def test_a_tokenizer_without_the_prompts_tokens_is_refused(spec, percentiles, base_tokenizers):
    with pytest.raises(BadInput, match=re.escape("no special token <|member.headline|>")):
        PromptRenderer(spec, percentiles, base_tokenizers["byte-level"])


@pytest.mark.parametrize(
    ("token", "text", "shown"), [(" ", "a b c", "abc"), ("< ", "a < b", "a b"), ("a", "banana", "b n n")]
)
def test_a_base_whose_added_tokens_cannot_be_broken_up_loses_those_characters(token, text, shown):
    """A space that breaks up one look-alike can be another one: it must end, and nothing reserved may be left."""
    spec = PromptSpec.parse({side: {"fields": [field("title")], "maxTokens": 40} for side in ("member", "item")})
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, normalized=False)])
    add_tokens(tokenizer, None, spec, Percentiles(), seed=0)
    assert PromptRenderer(spec, Percentiles(), tokenizer).item({"title": text}) == f"<|item.title|>{shown}"


def test_truncation_left_switched_on_by_a_caller_changes_nothing(spec, percentiles, tokenizers):
    tokenizer = tokenizers["byte-level"]
    features = {"title": "The feed ranks posts by what members engaged with before"}
    before = PromptRenderer(spec, percentiles, tokenizer).item(features)
    tokenizer("some text", truncation=True, max_length=3, padding="max_length")
    assert PromptRenderer(spec, percentiles, tokenizer).item(features) == before


def test_fields_the_prompts_do_not_show_are_ignored():
    assert renderer().item({"title": "x", "author": "y"}) == "<|item.title|>x"


def test_prompts_against_golden_files(golden):
    """What a model reads, byte for byte: a change here is another embedding space."""
    rendering = renderer(
        member=[field("headline", max_tokens=40), field("industry", "category", 20), field("activity", "percentile")],
        history={"maxItems": 3, "fields": [field("title", max_tokens=24), field("topic", "category", 12)]},
        item=[
            field("title", max_tokens=40),
            field("topic", "category", 20),
            field("words"),
            field("engagements", "percentile"),
        ],
        system="An item\nof a feed.",
        max_tokens=240,
    )
    items = [
        {"title": "How we cut our cloud bill in half", "topic": ["cloud", "cost"], "words": 812, "engagements": 3},
        {"title": "A title that is a good deal longer than the budget it has", "topic": "music", "engagements": 0},
        {"title": "Not these: <s><|pct.50|> nor ＜s＞", "engagements": None},
        {},
    ]
    posts = [{"title": f"Post number {n} about things", "topic": ["music", "art", "poetry"]} for n in range(1, 5)]
    members = [
        {"headline": "Data engineer", "industry": "Software", "activity": 2, "history": posts},
        {"headline": "  <s>Crème\tbrûlée ", "industry": None, "history": posts[:1]},
        {},
    ]
    golden("prompts/items.txt", "".join(rendering.item(features) + "\n" for features in items))
    golden("prompts/members.txt", "".join(rendering.member(features) + "\n" for features in members))

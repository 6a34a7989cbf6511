# ruff: noqa: RUF001 - look-alikes of special tokens are what is tested
"""User text cannot become a special token, whatever the tokenizer's normaliser, model and added tokens are.

Invariants, for every tokenizer and every text:
1. special and added ids appear in the tokenised prompt exactly at the renderer's own positions;
2. the ids of the parts, concatenated, are the ids of the whole;
3. the whole fits its budget.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_core.prompts import PromptRenderer, added_tokens

FRAGMENTS = [
    *("</s>", "<s>", "<pad>", "[MASK]", "[mask]", "<|endoftext|>", "<unk>", "[UNK]", "<mask>", "<<", "company", "ß"),
    *("<|item.title|>", "<|pct.1|>", "<|pct.zero|>", "<|history.title|>", "<|member.headline|>"),
    *(
        "＜/s＞",
        "［ＭＡＳＫ］",
        "＜ｐａｄ＞",
        "＜<",
        "<\u200b/s>",
        "<\u200b\u200b/s>",
        "< /s>",
        "<</s>/s>",
        "<<</s>/s>/s>",
        "[MA[MASK]SK]",
    ),
    *(
        "<",
        "|",
        ">",
        "<|",
        "|>",
        "</",
        "s>",
        " ",
        "\n",
        "\x00",
        "\ud800",
        "ﬁ",
        "é",
        "e\u0301",
        "漢字",
        "🙂",
        "İ",
        "ǅ",
        "engineer",
    ),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=10).map("".join),
    st.text(st.characters(exclude_categories=()), max_size=40),
)
NAMES = ["byte-level", "byte-fallback", "metaspace", "nfkc-lowercase"]


@pytest.fixture(scope="module")
def renderers(spec, percentiles, tokenizers) -> dict[str, PromptRenderer]:
    return {name: PromptRenderer(spec, percentiles, tokenizers[name]) for name in NAMES}


def reserved_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.added_tokens_decoder) | {tokenizer.unk_token_id} - {None}


def check_prompt(renderer: PromptRenderer, tokenizer: Any, prompt: str, own: list[str], budget: int) -> None:
    ids = tokenizer(prompt)["input_ids"]
    start, end = (
        [t for t in ids if t == tokenizer.bos_token_id][:1],
        [t for t in ids if t == tokenizer.eos_token_id][-1:],
    )
    specials = [identifier for identifier in ids if identifier in reserved_ids(tokenizer)]
    assert specials == [*start, *tokenizer.convert_tokens_to_ids(own), *end]
    tokens = added_tokens(renderer.spec, renderer.percentiles)
    pieces = re.split(f"({'|'.join(map(re.escape, tokens))})", prompt)
    parts = [pieces[0], *(token + text for token, text in zip(pieces[1::2], pieces[2::2], strict=True))]
    concatenated = [i for part in parts for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
    assert [*start, *concatenated, *end] == ids
    assert len(ids) <= budget


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(title=TEXTS, topic=st.lists(TEXTS, max_size=3), count=st.sampled_from([None, 0, 3]))
def test_no_text_of_an_item_becomes_a_special_token(name, renderers, tokenizers, title, topic, count):
    renderer = renderers[name]
    prompt = renderer.item({"title": title, "topic": topic, "engagements": count})
    percentile = renderer.percentiles.token("item.engagements", count)
    own = ["<|item.title|>", "<|item.topic|>", "<|item.engagements|>", percentile]
    check_prompt(renderer, tokenizers[name], prompt, own, renderer.spec.item.max_tokens)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(headline=TEXTS, industry=TEXTS, titles=st.lists(TEXTS, max_size=5))
def test_no_text_of_a_member_or_its_history_becomes_a_special_token(
    name, renderers, tokenizers, headline, industry, titles
):
    renderer = renderers[name]
    prompt = renderer.member(
        {"headline": headline, "industry": industry, "history": [{"title": title} for title in titles]}
    )
    shown = prompt.count("<|history.title|>")
    assert shown <= min(len(titles), 4)
    own = ["<|member.headline|>", "<|member.industry|>", "<|member.activity|>", "<|pct.unknown|>"]
    own += ["<|history.title|>"] * shown
    check_prompt(renderer, tokenizers[name], prompt, own, renderer.spec.member.max_tokens)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("byte-level", "</s>"),
        ("byte-level", "<|pct.zero|>"),
        ("byte-fallback", "<s>"),
        ("metaspace", "＜/s＞"),
        ("metaspace", "a <mask>"),
        ("metaspace", "<"),  # makes `<<` with the token of ours that follows
        ("nfkc-lowercase", "[mask]"),
        ("nfkc-lowercase", "［ＭＡＳＫ］"),
        ("nfkc-lowercase", "<p\u200bad>"),
    ],
)
def test_these_texts_would_become_special_tokens_if_they_were_not_neutralised(name, text, tokenizers):
    """The premise of the tests above: without it they would prove nothing."""
    tokenizer = tokenizers[name]
    ids = tokenizer(f"<|item.title|>{text}<|item.topic|>", add_special_tokens=False)["input_ids"]
    own = tokenizer.convert_tokens_to_ids(["<|item.title|>", "<|item.topic|>"])
    assert [i for i in ids if i in reserved_ids(tokenizer)] != own


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("byte-level", "before </s> after", "before < /s> after"),
        ("byte-level", "C++ < Rust | a > b", "C++ < Rust | a > b"),
        ("metaspace", "a ＜/s＞ b", "a ＜ /s＞ b"),
        ("nfkc-lowercase", "see [Mask] here", "see [ Mask] here"),
        ("nfkc-lowercase", "straße", "stra e"),  # an added token of one character can only be left out
    ],
)
def test_neutralised_text_stays_readable_and_other_text_stays_as_it_is(name, text, shown, renderers):
    assert renderers[name].item({"title": text}).startswith(f"<|item.title|>{shown}<|item.topic|>")

"""The reference path: pooling, normalisation, batches that do not matter, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import (
    Encoder,
    encode_token_ids,
    length_sorted_batches,
    mean_pool,
    normalise,
    truncate,
)
from retrieval_core.errors import BadInput, Diverged

WORDS = [
    "senior",
    "data",
    "engineer",
    "feed",
    "ranks",
    "posts",
    "by",
    "members",
    "what",
    "cut",
    "cloud",
    "bill",
    "half",
]


@pytest.fixture(scope="module")
def encoder(bundle) -> Encoder:
    return Encoder(bundle)


@pytest.fixture(scope="module")
def prompts(encoder) -> list[str]:
    """Prompts of very different lengths."""
    return [
        encoder.renderer.item({"title": " ".join(WORDS[: n % 12]), "topic": WORDS[n % 7], "engagements": n % 5})
        for n in range(37)
    ]


def test_mean_pooling_ignores_padding_and_is_done_in_fp32():
    hidden = torch.tensor([[[1.0, 3.0], [3.0, 5.0], [100.0, 100.0]]]).to(torch.bfloat16)
    pooled = mean_pool(hidden, torch.tensor([[1, 1, 0]]))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[2.0, 4.0]]
    assert mean_pool(hidden, torch.tensor([[0, 0, 0]])).tolist() == [[0.0, 0.0]]
    many = torch.full((1, 4096, 1), 1.0078125, dtype=torch.bfloat16)  # a sum in bf16 would stop growing at 256
    assert mean_pool(many, torch.ones(1, 4096)).item() == 1.0078125


def test_normalised_and_truncated_rows_have_unit_length():
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    unit = normalise(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    cut = truncate(unit, 3)
    assert cut.dtype == np.float32
    np.testing.assert_allclose(cut, unit[:, :3] / np.linalg.norm(unit[:, :3], axis=1, keepdims=True), rtol=1e-6)
    assert truncate(np.zeros((2, 4), np.float32), 2).tolist() == [[0, 0], [0, 0]]
    assert truncate(np.zeros((0, 4), np.float32), 2).shape == (0, 2)


@pytest.mark.parametrize("dimension", [0, 9])
def test_a_width_that_vectors_do_not_have_is_refused(dimension):
    with pytest.raises(ValueError, match="cannot cut vectors of width 8"):
        truncate(np.ones((1, 8), np.float32), dimension)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget_with_similar_lengths(lengths, budget):
    batches = list(length_sorted_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)


def test_vectors_are_what_the_definition_says(encoder, prompts):
    """One prompt at a time, without padding or mask, by hand."""
    expected = []
    for prompt in prompts:
        ids = encoder.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = encoder.model(input_ids=ids).last_hidden_state[0]
        mean = hidden.double().mean(dim=0)
        expected.append((mean / mean.norm()).numpy())
    vectors = encoder.encode_prompts(prompts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (37, encoder.dimension)
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-6)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1e-2  # they are not all alike


@pytest.mark.parametrize("token_budget", [1, 64, 200, 100_000])
def test_the_batch_a_prompt_is_in_does_not_matter(token_budget, bundle, encoder, prompts):
    expected = encoder.encode_prompts(prompts)
    found = Encoder(bundle, token_budget=token_budget).encode_prompts(list(reversed(prompts)))
    np.testing.assert_allclose(found[::-1], expected, atol=1e-6)


def test_attention_is_causal(encoder):
    """The first tokens' hidden states do not depend on what follows."""
    with torch.no_grad():
        short = encoder.model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
        long = encoder.model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).last_hidden_state
    torch.testing.assert_close(long[:, :3], short, atol=1e-6, rtol=0)


def test_features_are_rendered_and_encoded(encoder):
    items = [{"title": "Cloud bill", "engagements": 3}, {}]
    members = [{"headline": "engineer", "history": items}]
    prompts = [encoder.renderer.item(item) for item in items]
    np.testing.assert_array_equal(encoder.encode_items(items), encoder.encode_prompts(prompts))
    prompts = [encoder.renderer.member(member) for member in members]
    np.testing.assert_array_equal(encoder.encode_members(members), encoder.encode_prompts(prompts))


def test_no_prompts_give_no_vectors(encoder):
    assert encoder.encode_prompts([]).shape == (0, 32)
    assert encode_token_ids(encoder.model, [], token_budget=8).shape == (0, 32)


def test_progress_counts_prompts_across_windows(bundle, prompts, monkeypatch):
    monkeypatch.setattr("retrieval_core.encoding.WINDOW", 10)
    encoder = Encoder(bundle, token_budget=100)
    seen: list[tuple[int, int]] = []
    vectors = encoder.encode_prompts(prompts, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (37, 37)
    assert {total for _, total in seen} == {37}
    monkeypatch.undo()
    np.testing.assert_allclose(vectors, Encoder(bundle).encode_prompts(prompts), atol=1e-6)


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(encoder):
    with pytest.raises(BadInput, match=r"prompt 1 has \d+ tokens, this bundle takes at most 64"):
        encoder.encode_prompts(["short", "word " * 100])


def test_an_empty_prompt_is_refused(write_tiny, tmp_path):
    encoder = Encoder(Bundle.open(write_tiny(tmp_path / "b", tokenizer="nfkc-lowercase")))  # adds no BOS
    with pytest.raises(BadInput, match="prompt 0 is empty"):
        encoder.encode_prompts([""])


def test_numbers_that_are_not_finite_are_never_returned(bundle, prompts):
    encoder = Encoder(bundle)
    with torch.no_grad():
        encoder.model.norm.weight[3] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        encoder.encode_prompts(prompts)


def test_a_model_in_training_is_validated_without_dropout_and_left_in_training(make_llama):
    model = make_llama(100, attention_dropout=0.5).model.train()
    ids = [[1, 2, 3, 4, 5]] * 3
    first = encode_token_ids(model, ids, token_budget=64)
    assert model.training
    assert np.array_equal(first, encode_token_ids(model, ids, token_budget=64))
    model.train()
    with torch.no_grad():
        runs = [model(input_ids=torch.tensor(ids)).last_hidden_state for _ in range(2)]
    assert not torch.equal(*runs)  # the premise: this model does drop


def test_a_bf16_bundle_is_run_in_bf16_and_stays_close_to_fp32(write_tiny, encoder, prompts, tmp_path):
    narrow = Encoder(Bundle.open(write_tiny(tmp_path / "b", dtype="bfloat16")))
    assert next(narrow.model.parameters()).dtype == torch.bfloat16
    vectors = narrow.encode_prompts(prompts)
    assert vectors.dtype == np.float32
    cosines = (vectors * encoder.encode_prompts(prompts)).sum(axis=1)
    assert cosines.min() >= 0.9995

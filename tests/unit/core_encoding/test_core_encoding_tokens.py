"""Added tokens: parsed alike by every reader, and first rows that are seeded, smooth and never all alike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from retrieval_core.prompts import Percentiles, add_tokens, added_tokens


@pytest.fixture
def tokenizer(base_tokenizers):
    return copy.deepcopy(base_tokenizers["byte-level"])


def rows_of(tokenizer, model, tokens):
    return model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(tokens)].detach()


def test_tokens_are_fields_in_prompt_order_then_what_training_saw(spec):
    percentiles = Percentiles.fit(
        spec, {"member.activity": np.array([1, 2]), "item.engagements": np.array([1, 1, 1, 5])}
    )
    assert added_tokens(spec, percentiles) == [
        *("<|member.headline|>", "<|member.industry|>", "<|member.activity|>", "<|history.title|>"),
        *("<|item.title|>", "<|item.topic|>", "<|item.engagements|>"),
        *("<|pct.zero|>", "<|pct.unknown|>", "<|pct.50|>", "<|pct.75|>", "<|pct.100|>"),
    ]


def test_every_token_is_one_id_in_a_string_also_after_saving(tokenizer, spec, percentiles, tmp_path):
    add_tokens(tokenizer, None, spec, percentiles, seed=0)
    tokenizer.save_pretrained(tmp_path)
    for read in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for token in added_tokens(spec, percentiles):
            ids = read(f"a{token}b", add_special_tokens=False)["input_ids"]
            assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1
            assert len(ids) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_same_for_the_same_seed_and_differ_for_another(
    tied, base_tokenizers, make_llama, spec, percentiles
):
    def rows(seed):
        tokenizer = copy.deepcopy(base_tokenizers["byte-level"])
        model = make_llama(len(tokenizer), tied=tied)
        new = add_tokens(tokenizer, model, spec, percentiles, seed=seed)
        torch.rand(3)  # the global random state must not matter
        return torch.cat([rows_of(tokenizer, model, new), model.get_output_embeddings().weight[-len(new) :].detach()])

    first, again, other = rows(0), rows(0), rows(1)
    assert torch.equal(first, again)
    assert (first - other).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_percentile_rows_are_a_smooth_ramp_of_the_norm_of_other_rows(tied, tokenizer, make_llama, spec):
    percentiles = Percentiles.fit(spec, {"member.activity": np.arange(1, 101), "item.engagements": np.array([1])})
    model = make_llama(len(tokenizer), tied=tied)
    norm = model.get_input_embeddings().weight.norm(dim=1).median()
    add_tokens(tokenizer, model, spec, percentiles, seed=0)
    ramp = rows_of(tokenizer, model, [f"<|pct.{bucket}|>" for bucket in range(1, 101)])
    torch.testing.assert_close(ramp.norm(dim=1), norm.expand(100))
    steps = (ramp[1:] - ramp[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, steps[0].expand(99))
    distances = (ramp - ramp[0]).norm(dim=1)
    assert (distances[1:] > distances[:-1]).all()
    assert (ramp[0] @ ramp[99]).abs() < 1e-5 * norm**2


def test_other_rows_lie_around_the_mean_row_and_are_not_alike(tokenizer, make_llama, spec, percentiles):
    model = make_llama(len(tokenizer))
    base = model.get_input_embeddings().weight.detach().clone()
    new = [token for token in add_tokens(tokenizer, model, spec, percentiles, seed=0) if not token.startswith("<|pct.")]
    rows = rows_of(tokenizer, model, new)
    assert len(new) == 7
    assert torch.pdist(rows).min() > 0.5 * torch.pdist(base).median()
    assert (rows.mean(dim=0) - base.mean(dim=0)).norm() < rows.norm(dim=1).mean()
    assert torch.equal(model.get_input_embeddings().weight[: len(base)].detach(), base)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_stays_tied_or_gets_rows_of_its_own(tied, tokenizer, make_llama, spec, percentiles):
    model = make_llama(len(tokenizer), tied=tied)
    new = add_tokens(tokenizer, model, spec, percentiles, seed=0)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding.data_ptr() == head.data_ptr()) is tied
    assert head.shape == (len(tokenizer), 32)
    assert head[-len(new) :].norm(dim=1).min() > 0.1
    assert torch.pdist(head[-len(new) :]).min() > 1e-3


def test_a_padded_embedding_is_used_and_not_shrunk(tokenizer, make_llama, spec, percentiles):
    base_rows = len(tokenizer)
    model = make_llama(base_rows + 200)
    before = model.get_input_embeddings().weight.detach().clone()
    new = add_tokens(tokenizer, model, spec, percentiles, seed=0)
    after = model.get_input_embeddings().weight.detach()
    assert after.shape == before.shape
    assert not torch.equal(after[base_rows : base_rows + len(new)], before[base_rows : base_rows + len(new)])
    assert torch.equal(after[base_rows + len(new) :], before[base_rows + len(new) :])


def test_tokens_of_an_earlier_training_keep_their_rows(tokenizer, make_llama, spec, percentiles):
    model = make_llama(len(tokenizer))
    few = Percentiles.fit(spec, {"member.activity": np.array([1, 2]), "item.engagements": np.array([1, 2])})
    learnt = add_tokens(tokenizer, model, spec, few, seed=0)
    before = rows_of(tokenizer, model, learnt).clone()
    new = add_tokens(tokenizer, model, spec, percentiles, seed=7)
    assert new
    assert not set(new) & set(learnt)
    assert torch.equal(rows_of(tokenizer, model, learnt), before)


def test_a_backbone_without_head_gets_rows_as_well(tokenizer, make_llama, spec, percentiles):
    backbone = make_llama(len(tokenizer)).model
    new = add_tokens(tokenizer, backbone, spec, percentiles, seed=0)
    assert backbone.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert torch.pdist(rows_of(tokenizer, backbone, new)).min() > 1e-3

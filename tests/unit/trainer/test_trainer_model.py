"""The model that is trained: which bases are taken, LoRA and its merge, and the forward pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from retrieval_core.encoding import encode_token_ids, normalise
from retrieval_core.errors import BadInput
from retrieval_trainer.assembly import Training, assemble
from retrieval_trainer.config import Lora, MaxTokens, TrainConfig
from retrieval_trainer.encoder import DualEncoder, token_batch
from retrieval_trainer.loop import train_step
from retrieval_trainer.model import attach_lora, base_sha256, load_base, merged
from retrieval_trainer.optim import build_optimizer


def copy_of(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def test_a_base_without_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    path = copy_of(base, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        load_base(path, (16,))


def test_pickle_weights_are_refused(base: Path, tmp_path: Path) -> None:
    path = copy_of(base, tmp_path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pickle"):
        load_base(path, (16,))


def test_a_width_that_is_not_the_models_is_refused(base: Path) -> None:
    with pytest.raises(BadInput, match=r"the first is 32, but the hidden size .* is 16; put 16 first"):
        load_base(base, (32, 16))


def test_a_model_whose_tokens_see_later_ones_is_refused(base: Path, tmp_path: Path) -> None:
    path = copy_of(base, tmp_path)
    (path / "model.safetensors").unlink()
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(path)
    with pytest.raises(BadInput, match=r"bert.* expected a causal LM"):
        load_base(path, (16,))


@pytest.mark.parametrize(("member", "item"), [(4096, 96), (256, 3000)])
def test_prompts_longer_than_the_bases_positions_are_refused(
    config_of: Callable[..., TrainConfig], base: Path, member: int, item: int
) -> None:
    side, found = ("member", member) if member > item else ("item", item)
    config = config_of().model_copy(update={"max_tokens": MaxTokens(member=member, item=item)})
    expected = rf"maxTokens of {side} is {found}, but base {base} has 2048 positions .* lower maxTokens to 2048"
    with pytest.raises(BadInput, match=expected):
        assemble(config, torch.device("cpu"))
    fitting = config.model_copy(update={"max_tokens": MaxTokens(member=2048, item=2048)})
    assert assemble(fitting, torch.device("cpu")).prompts.max_tokens == {"member": 2048, "item": 2048}


@pytest.mark.parametrize(
    ("name", "noticed", "noticed_without_weights"),
    [
        ("model.safetensors", True, False),
        ("tokenizer.json", True, True),
        ("tokenizer_config.json", True, True),
        ("config.json", True, True),
        ("README.md", False, False),
    ],
)
def test_the_digest_of_a_base_notices_other_weights_and_another_tokenizer(
    base: Path, tmp_path: Path, name: str, noticed: bool, noticed_without_weights: bool
) -> None:
    path = copy_of(base, tmp_path)
    (path / "README.md").write_text("as it was")
    before = [base_sha256(path, weights=weights) for weights in (True, False)]
    assert before == [base_sha256(base, weights=weights) for weights in (True, False)], "the place does not matter"
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    after = [base_sha256(path, weights=weights) for weights in (True, False)]
    assert [was != now for was, now in zip(before, after, strict=True)] == [noticed, noticed_without_weights]


def test_weights_that_checkpoints_hold_anyway_are_no_part_of_a_presets_identity(
    config_of: Callable[..., TrainConfig], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset is made anew where its cache is gone, with other last bits: a full training goes on all the same."""
    monkeypatch.setattr("retrieval_trainer.assembly.tiny_base", lambda _: base)
    found = {}
    for method in ("full", "lora"):
        config = config_of(method=method)
        preset = config.model_copy(update={"base": type(config.base)(preset="tiny")})
        found[method] = [assemble(c, torch.device("cpu")).base_sha256 for c in (config, preset)]
    whole, without = (base_sha256(base, weights=weights) for weights in (True, False))
    assert found == {"full": [whole, without], "lora": [whole, whole]}


def test_lora_trains_adapters_and_the_prompts_rows_alone(base: Path) -> None:
    model = attach_lora(load_base(base, (16,)).model, Lora(rank=2), [3, 4])
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trainable)
    rows = [p for name, p in trainable.items() if "lora_" not in name]
    assert [tuple(p.shape) for p in rows] == [(2, 16)], "the two rows, and nothing else of the base"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_merged_model_gives_the_vectors_the_training_saw(training_of: Callable[..., Training], method: str) -> None:
    training = training_of(method=method, learningRate=1e-2)
    optimizer = build_optimizer(training.model, weight_decay=0.0)
    encoder = DualEncoder(training.model)
    for step in range(3):
        train_step(training, encoder, optimizer, training.step_input(8 * step), step=step, stop=False)
    sequences = training.prompt_tokens.items(np.arange(6, dtype=np.int32), np.full(6, 2**31))
    untrained = encode_token_ids(load_base_like(training), sequences, token_budget=512)
    before = encode_token_ids(training.model, sequences, token_budget=512)
    plain = merged(training.model)
    assert type(plain).__name__ == "LlamaModel"
    assert not any("lora" in name for name, _ in plain.named_parameters())
    np.testing.assert_allclose(encode_token_ids(plain, sequences, token_budget=512), before, atol=2e-6)
    assert np.abs(before - untrained).max() > 1e-3, "three steps at this rate must show"


def load_base_like(training: Training) -> object:
    """The model as it was before the first step: the base with the prompts' tokens."""
    from retrieval_core.prompts import add_tokens

    fresh = load_base(Path(str(training.config.base.uri)), training.config.dimensions)
    add_tokens(
        fresh.tokenizer, fresh.model, training.prompts, training.percentiles, training.config.hyperparameters.seed
    )
    return fresh.model


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    repeats=st.integers(0, 3),
    budget=st.sampled_from([1, 16, 1000]),
)
def test_micro_batches_change_nothing(base: Path, lengths: list[int], repeats: int, budget: int) -> None:
    """Sorting, padding, splitting and encoding equal prompts once give what encoding one by one gives."""
    model = load_base(base, (16,)).model
    random = np.random.default_rng(len(lengths))
    sequences = [random.integers(1, 300, size=n).tolist() for n in lengths]
    sequences += sequences[:repeats]
    batch = token_batch(sequences, budget)
    assert batch.tokens == sum(len(s) for s in {tuple(s) for s in sequences})
    assert all(ids.numel() <= budget or len(ids) == 1 for ids in batch.input_ids)
    with torch.no_grad():
        vectors = normalise(DualEncoder(model)(batch)).numpy()
    one_by_one = np.concatenate([encode_token_ids(model, [s], token_budget=1) for s in sequences])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)

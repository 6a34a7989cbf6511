"""Base models: what cannot be loaded safely or completely is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieval_core.bundle import load_model, load_tokenizer
from retrieval_core.errors import BadInput


@pytest.fixture
def base(base_tokenizers, make_llama, tmp_path) -> Path:
    tokenizer = base_tokenizers["byte-level"]
    make_llama(len(tokenizer), tied=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_base_model_loads_with_and_without_its_head(base):
    assert load_model(base).__class__.__name__ == "LlamaModel"
    assert load_model(base, causal_lm=True).__class__.__name__ == "LlamaForCausalLM"
    assert load_tokenizer(base).padding_side == "right"


def test_the_backbone_alone_gives_the_hidden_states_of_the_whole_model(base):
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = load_model(base, causal_lm=True)(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(load_model(base)(input_ids=ids).last_hidden_state, whole)


def test_a_bundle_can_be_the_base_of_the_next_training(bundle):
    model = load_model(bundle.path, causal_lm=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = load_model(bundle.path)(input_ids=ids).last_hidden_state
    assert torch.equal(model.model(input_ids=ids).last_hidden_state, expected)


def test_pickle_weights_are_refused(base):
    torch.save({}, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"only pickle weights \(pytorch_model\.bin\).*convert them to safetensors"):
        load_model(base)


def test_adapters_beside_the_weights_are_refused(base):
    """transformers follows the base that they name, and reads them from a pickle where it has no safetensors."""
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"}))
    torch.save({}, base / "adapter_model.bin")
    with pytest.raises(BadInput, match="merge them into their base"):
        load_model(base)


def test_a_base_without_tokenizer_is_refused(base):
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_tokenizer(base)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"it has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(BadInput, match=r"it has no config\.json"):
        load_tokenizer(tmp_path / "nothing")


def test_a_model_without_weights_is_refused(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="has no weights"):
        load_model(base)


def test_missing_weights_are_not_filled_with_random_numbers(base):
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights are missing, layers\.1\.mlp\.up_proj\.weight"):
        load_model(base)


def test_a_damaged_weight_file_is_refused(base):
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="the model cannot be loaded"):
        load_model(base)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "unheard_of"},
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}},
    ],
    ids=["unknown architecture", "code of its own"],
)
def test_a_model_that_needs_other_code_is_refused(change, base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    (base / "mine.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(BadInput, match="the model cannot be loaded"):
        load_model(base)

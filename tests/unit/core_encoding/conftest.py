"""Small real tokenizers and models, built and trained here: nothing is downloaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval_core.bundle import Bundle, write_bundle
from retrieval_core.prompts import Percentiles, PromptSpec, add_tokens

CORPUS = [
    "Senior data engineer at a small company, working on retrieval and ranking",
    "How we cut our cloud bill in half without losing any sleep",
    "Crème brûlée and other things that engineers cook at home",
    "The feed ranks posts by what members engaged with before",
    "東京 の 天気 は 晴れ です ; Привет мир ; naïve café",
    "</s> <pad> [MASK] <|endoftext|> <|pct.7|> are written by people who like to try things",
] * 20

SPEC = {
    "member": {
        "system": "A member of a feed.",
        "fields": [
            {"name": "headline", "rendering": "text", "maxTokens": 12},
            {"name": "industry", "rendering": "category", "maxTokens": 8},
            {"name": "activity", "rendering": "percentile"},
        ],
        "history": {"maxItems": 4, "fields": [{"name": "title", "rendering": "text", "maxTokens": 10}]},
        "maxTokens": 64,
    },
    "item": {
        "fields": [
            {"name": "title", "rendering": "text", "maxTokens": 16},
            {"name": "topic", "rendering": "category"},
            {"name": "engagements", "rendering": "percentile"},
        ],
        "maxTokens": 48,
    },
}


def _byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen: bytes, so nothing is unknown; specials are found before anything else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _metaspace_unigram() -> PreTrainedTokenizerFast:
    """As SentencePiece: the specials are pieces of the model too, unknown characters have an id, no EOS is added."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>", "[MASK]"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Overlaps the start of every token of ours, and takes the white space on its left.
    tokenizer.add_special_tokens([AddedToken("<<", normalized=False), AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _nfkc_lowercase() -> PreTrainedTokenizerFast:
    """As uncased models: specials are looked for in normalised text too, and there is no BOS, EOS or pad token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Replace("\u200b", "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits()])
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("[MASK]", normalized=True), AddedToken("<pad>", normalized=True)])
    tokenizer.add_tokens([AddedToken("company", normalized=True, single_word=True), AddedToken("ß", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def _byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: the normaliser puts a space before every section of text, unknown characters become bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "byte-level": _byte_level,
    "byte-fallback": _byte_fallback,
    "metaspace": _metaspace_unigram,
    "nfkc-lowercase": _nfkc_lowercase,
}


@pytest.fixture(scope="session")
def spec() -> PromptSpec:
    return PromptSpec.parse(SPEC)


@pytest.fixture(scope="session")
def percentiles(spec: PromptSpec) -> Percentiles:
    generator = np.random.default_rng(0)
    counts = generator.geometric(0.2, size=500) - 1
    return Percentiles.fit(spec, {"member.activity": counts, "item.engagements": counts * 3})


@pytest.fixture(scope="session")
def base_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {name: build() for name, build in TOKENIZERS.items()}


@pytest.fixture(scope="session")
def tokenizers(base_tokenizers, spec, percentiles) -> dict[str, PreTrainedTokenizerFast]:
    """The same with the prompts' tokens; shared by tests that do not change them."""
    extended = copy.deepcopy(base_tokenizers)
    for tokenizer in extended.values():
        add_tokens(tokenizer, None, spec, percentiles, seed=0)
    return extended


def tiny_llama(vocabulary: int, *, tied: bool = True, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            **config,
        )
    ).eval()


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama


@pytest.fixture(scope="session")
def write_tiny(base_tokenizers, spec, percentiles) -> Callable[..., Path]:
    """Write a bundle of a tiny model; arguments change one thing about it."""

    def write(directory: Path, *, tokenizer: str = "byte-level", tied: bool = True, **changed: Any) -> Path:
        own = copy.deepcopy(base_tokenizers[tokenizer])
        config, replacement = changed.pop("config", {}), changed.pop("tokenizer_object", None)
        model = tiny_llama(len(own), tied=tied, **config)
        add_tokens(own, model, spec, percentiles, seed=0)
        training = {"revision": "r1", "snapshot": "0" * 16, "provenance": "synthetic", "seed": 0, "steps": 10}
        arguments: dict[str, Any] = {
            "model": model,
            "tokenizer": replacement or own,
            "prompts": spec,
            "percentiles": percentiles,
            "dimensions": [32, 16],
            "dimension": 32,
            "training": training,
            "card": "A test model.",
        }
        write_bundle(directory, **(arguments | changed))
        return directory

    return write


@pytest.fixture(scope="session")
def bundle_path(write_tiny, tmp_path_factory) -> Path:
    """A bundle shared by tests that only read it."""
    return write_tiny(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def bundle(bundle_path) -> Bundle:
    return Bundle.open(bundle_path)

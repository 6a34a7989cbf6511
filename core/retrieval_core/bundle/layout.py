"""The files through which other programs read a bundle.

sentence-transformers finds its modules under the names that all its versions know. transformers' configs are written
in the spelling of version 5 and in that of version 4 (`rope_theta` and `rope_scaling`, `torch_dtype`), and without what
says nothing about the model, such as the library's version: the bundle's id must not change because a library did.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from retrieval_core.bundle.manifest import EmbeddingSpec
from retrieval_core.files import write_json

_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "name_or_path")
_NOT_THE_TOKENIZER = (*_NOT_THE_MODEL, "backend", "is_local", "local_files_only", "processor_class", "auto_map")


def write_sentence_transformers_files(directory: Path, embedding: EmbeddingSpec) -> None:
    """modules.json and what it names: transformer, mean pooling, normalisation."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": embedding.max_tokens.longest, "do_lower_case": False},
    )
    write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": embedding.dimension,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": True,
        },
    )
    # Object stores have no empty directories, so this one gets a file.
    write_json(directory / "2_Normalize" / "config.json", {})


def respell_model_config(path: Path, dtype: str) -> None:
    """Add version 4's names to a config.json written by transformers 5."""
    config = _without(json.loads(path.read_text(encoding="utf-8")), _NOT_THE_MODEL)
    config |= {"dtype": dtype, "torch_dtype": dtype}
    config |= _older_rope_spelling(config.get("rope_parameters") or {})
    write_json(path, config)


def _older_rope_spelling(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling; nothing for rotations per layer type, for which version 4 had no common spelling."""
    if "rope_theta" not in rope:
        return {}
    beside: dict[str, Any] = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in beside}
    plain = scaling.get("rope_type", "default") == "default"
    return {**beside, "rope_scaling": None if plain else scaling}


def drop_call_settings(path: Path) -> None:
    """Take padding and truncation out of a tokenizer.json: a call may have left them there, they are not the model."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(path))


def respell_tokenizer_config(path: Path, *, max_tokens: int, fallback_pad: str) -> None:
    """A tokenizer_config.json that every version reads as `tokenizer.json, as it is`, padded on the right.

    Padding is masked everywhere, so a tokenizer without a pad token gets its EOS or `fallback_pad` for it.
    """
    config = _without(json.loads(path.read_text(encoding="utf-8")), _NOT_THE_TOKENIZER)
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        # Version 4's default for this class has token_type_ids too, which a causal model does not take.
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "pad_token": config.get("pad_token") or config.get("eos_token") or fallback_pad,
    }
    write_json(path, config)


def _without(config: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}

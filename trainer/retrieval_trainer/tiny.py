"""The `tiny` preset: a toy base made offline from the dataset's own training texts, for demos and tests.

A byte-level BPE tokenizer is trained on the texts and a small LLaMA is briefly pretrained on them as a causal LM. It
knows nothing of the world: it shows that the whole life of a model works, never how good a real base is. Made once per
(texts, settings) and kept in RETRIEVAL_BASE_CACHE, or ${XDG_CACHE_HOME:-~/.cache}/retrieval-operator/bases.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval_core.dataset import Dataset
from retrieval_core.files import canonical_json, write_json
from retrieval_core.log import get_logger

CACHE_VARIABLE = "RETRIEVAL_BASE_CACHE"
END_OF_TEXT = "<|endoftext|>"
log = get_logger(__name__)


@dataclass(frozen=True)
class TinyRecipe:
    """All that decides the base besides the texts. The sizes are those of the first trials on MovieLens."""

    version: int = 1
    vocabulary: int = 4096
    width: int = 128
    layers: int = 2
    heads: int = 4
    feed_forward: int = 352  # 8/3 of the width, rounded up to 32, as LLaMA does
    context: int = 2048  # positions; prompts may be longer than the blocks it is pretrained on
    block: int = 128  # tokens of a pretraining sequence
    batch: int = 32
    steps: int = 150  # about 25 s on two cores
    learning_rate: float = 2e-3
    seed: int = 0
    max_documents: int = 40_000  # bounds tokenizer training; a sample by stride is representative enough for a toy


def tiny_base(dataset: Dataset, recipe: TinyRecipe | None = None) -> Path:
    """The directory of the dataset's toy base, made now if it is not in the cache. Safe to call from several processes.

    A crash leaves only a temporary directory behind; whoever renames first wins, and the others use that one.
    """
    recipe = recipe or TinyRecipe()
    texts = training_texts(dataset, recipe.max_documents)
    key = hashlib.sha256(canonical_json([asdict(recipe), texts]).encode()).hexdigest()[:16]
    target = _cache_directory() / key
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        _make(texts, recipe, temporary)
        with suppress(OSError):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def training_texts(dataset: Dataset, limit: int) -> list[str]:
    """One document per item and member of the training part, and per member's training history; at most `limit`.

    Items and members that first appear in the test part are not in it, not even by their texts.
    """
    events = dataset.events
    train, positive = ~events.is_test, events.engaged & ~events.is_test
    items = _rows_as_text(dataset.item_columns, len(dataset.item_ids), dataset.spec.items)
    members = _rows_as_text(dataset.member_columns, len(dataset.member_ids), dataset.spec.members)
    titles = _rows_as_text(dataset.item_columns, len(dataset.item_ids), dataset.spec.items, first_only=True)
    order = np.argsort(events.member[positive], kind="stable")
    engaged_by, engaged = events.member[positive][order], events.item[positive][order]
    starts = np.searchsorted(engaged_by, np.arange(len(members) + 1))
    documents = [
        *(items[item] for item in np.unique(events.item[train])),
        *(members[member] for member in np.unique(events.member[train])),
        *(". ".join(titles[i] for i in engaged[start:stop]) for start, stop in pairwise(starts)),
    ]
    documents = [document for document in documents if document]
    return documents[:: max(1, -(-len(documents) // limit))]


def _rows_as_text(columns: Any, rows: int, spec: Any, *, first_only: bool = False) -> list[str]:
    names = [*spec.text, *spec.category]
    parts = [columns[name].to_pylist() for name in (names[:1] if first_only else names)]
    return [". ".join(_as_text(values[row]) for values in parts if values[row]) for row in range(rows)]


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _make(texts: list[str], recipe: TinyRecipe, directory: Path) -> None:
    started = time.perf_counter()
    tokenizer = _train_tokenizer(texts, recipe)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    loss = _pretrain(model, _token_stream(texts, tokenizer), recipe)
    _save_model(model, directory)
    tokenizer.save_pretrained(directory)
    write_json(directory / "tiny.json", {"formatVersion": 1, "recipe": asdict(recipe), "finalLoss": loss})
    log.info(
        "made the tiny base", documents=len(texts), loss=round(loss, 3), seconds=round(time.perf_counter() - started)
    )


def _save_model(model: LlamaForCausalLM, directory: Path) -> None:
    """What `model.save_pretrained` writes on the first rank alone, while every node needs a base of its own."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _train_tokenizer(texts: list[str], recipe: TinyRecipe) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def _token_stream(texts: list[str], tokenizer: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return np.concatenate([np.asarray(ids + end, dtype=np.int64) for ids in encoded])


def _blocks(stream: np.ndarray[Any, np.dtype[np.int64]], recipe: TinyRecipe) -> Iterator[torch.Tensor]:
    random = np.random.default_rng(recipe.seed)
    stream = np.tile(stream, -(-(recipe.block + 1) // len(stream)))  # a corpus shorter than one block repeats
    for _ in range(recipe.steps):
        starts = random.integers(0, len(stream) - recipe.block, size=recipe.batch)
        yield torch.from_numpy(np.stack([stream[start : start + recipe.block] for start in starts]))


def _pretrain(model: Any, stream: np.ndarray[Any, np.dtype[np.int64]], recipe: TinyRecipe) -> float:
    """Causal LM loss of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    model.train()
    loss = torch.zeros(())
    for block in _blocks(stream, recipe):
        loss = model(input_ids=block, labels=block).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _cache_directory() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "retrieval-operator" / "bases"

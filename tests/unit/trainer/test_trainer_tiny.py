"""The toy base: made from the training part alone, once per texts and recipe, the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retrieval_core.dataset import Dataset
from retrieval_core.files import sha256_file
from retrieval_trainer.tiny import TinyRecipe, tiny_base, training_texts

RECIPE = TinyRecipe(vocabulary=300, width=16, heads=2, feed_forward=32, block=16, batch=2, steps=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETRIEVAL_BASE_CACHE", str(tmp_path / "bases"))
    return tmp_path / "bases"


def test_it_is_made_once(cache: Path, dataset: Dataset) -> None:
    path = tiny_base(dataset, RECIPE)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert tiny_base(dataset, RECIPE) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert [entry.name for entry in cache.iterdir()] == [path.name], "no temporary directory is left"


def test_another_recipe_is_another_base(cache: Path, dataset: Dataset) -> None:
    assert tiny_base(dataset, RECIPE) != tiny_base(dataset, replace(RECIPE, seed=1))


def test_making_it_again_gives_the_same_weights(
    cache: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_base(dataset, RECIPE)
    monkeypatch.setenv("RETRIEVAL_BASE_CACHE", str(tmp_path / "elsewhere"))
    second = tiny_base(dataset, RECIPE)
    assert first != second
    for name in ("model.safetensors", "tokenizer.json"):
        assert sha256_file(first / name) == sha256_file(second / name)


def test_any_text_survives_its_tokenizer(cache: Path, dataset: Dataset) -> None:
    """Byte-level: no text is unknown to it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base(dataset, RECIPE))
    text = "naïve 東京 \U0001f600 <tab>\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_texts_of_the_test_part_are_not_in_it(dataset: Dataset) -> None:
    events = dataset.events
    trained = set(events.item[~events.is_test].tolist())
    titles = dataset.item_columns["title"].to_pylist()
    unseen = {title for item, title in enumerate(titles) if item not in trained}
    unseen -= {titles[item] for item in trained}
    assert unseen, "the premise: there are items of the test part alone"
    texts = " | ".join(training_texts(dataset, 10**6))
    assert titles[min(trained)] in texts
    assert not [title for title in unseen if f"{title}." in texts]


def test_the_number_of_documents_is_bounded(dataset: Dataset) -> None:
    assert 50 < len(training_texts(dataset, 100)) <= 100


def test_a_rank_that_is_first_only_on_its_node_makes_a_whole_one(
    cache: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process group transformers saves models on the very first rank only, and nodes share no disk."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda *_: 1)
        made = tiny_base(dataset, RECIPE)
    model = AutoModelForCausalLM.from_pretrained(made)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight), "tied"

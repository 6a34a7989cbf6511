"""What is checked and recorded when a training is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval_core.bundle import Bundle
from retrieval_core.errors import BadInput, Diverged
from retrieval_trainer.assembly import Training
from retrieval_trainer.checkpoint import Progress
from retrieval_trainer.config import TrainConfig
from retrieval_trainer.finish import (
    finished_bundle,
    is_collapsed,
    publish_bundle,
    record_artifacts,
    require_spread,
)
from retrieval_trainer.journal import plot_curves

LOOK = {"step": 4, "recall_uniform": 0.4, "recall_popular": 0.3}
LOOK |= {"popularity_recall_uniform": 0.2, "popularity_recall_popular": 0.1}
HISTORY = ({"step": 1, "loss": 2.0}, LOOK)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1.0, 0.0], [1.0, 0.001], [1.0, 0.0]], True),
        ([[1.0, 0.0], [0.0, 1.0]], False),
        ([[1.0, 0.0], [0.99, 0.14]], False),
        ([[0.0, 0.0], [0.0, 0.0]], True),
        ([[1.0, 0.0]], False),
        ([], False),
    ],
)
def test_equal_or_zero_vectors_are_a_collapse(vectors: list[list[float]], expected: bool) -> None:
    assert is_collapsed(np.array(vectors, dtype=np.float32).reshape(-1, 2)) is expected


def test_a_collapsed_encoder_is_diverged_and_a_sound_one_is_not(training_of: Callable[..., Training]) -> None:
    training = training_of()
    require_spread(training)
    with torch.no_grad():
        training.model.get_input_embeddings().weight[:] = 1.0
    with pytest.raises(Diverged, match=r"collapsed.*learningRate"):
        require_spread(training)


def test_a_bundle_at_remote_storage_is_found_again(
    training_of: Callable[..., Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path))
    training, out = training_of(), f"memory://{tmp_path.name}/revisions/test/bundle"
    assert finished_bundle(training.config, out) is None
    written = publish_bundle(training, Progress(4, 32, HISTORY), out)
    assert len(record_artifacts(written)) == 3, "its files can be reported"
    found = finished_bundle(training.config, out)
    assert found is not None
    assert found.id == written.id
    with pytest.raises(BadInput, match="holds the bundle of revision test, this is other"):
        finished_bundle(training.config.model_copy(update={"revision": "other"}), out)


def test_a_bundle_that_was_trained_otherwise_under_the_same_name_is_refused_in_words(
    training_of: Callable[..., Training], tmp_path: Path
) -> None:
    training, out = training_of(), str(tmp_path / "bundle")
    publish_bundle(training, Progress(4, 32, HISTORY), out)
    other = training.config.model_dump(mode="json", by_alias=True)
    other["hyperparameters"] |= {"learningRate": 0.5, "lora": {"rank": 3}}
    other["dimensions"] = [*other["dimensions"], 4]
    with pytest.raises(BadInput) as refused:
        finished_bundle(TrainConfig.model_validate(other), out)
    assert "dimensions [" in str(refused.value)
    assert "hyperparameters.learningRate 0.001 (asked for 0.5)" in str(refused.value)
    assert "hyperparameters.lora.rank 16 (asked for 3)" in str(refused.value)


def test_what_a_document_leaves_open_is_no_other_training(training_of: Callable[..., Training], tmp_path: Path) -> None:
    """A newer version may have other defaults; the bundle of this revision is complete all the same."""
    training, out = training_of(), str(tmp_path / "bundle")
    publish_bundle(training, Progress(4, 32, HISTORY), out)
    document = training.config.model_dump(mode="json", by_alias=True)
    document["hyperparameters"] = {"steps": document["hyperparameters"]["steps"], "learningRate": None}
    assert finished_bundle(TrainConfig.model_validate(document), out) is not None


def test_the_record_and_the_card_say_what_the_model_is(training_of: Callable[..., Training], tmp_path: Path) -> None:
    training = training_of()
    record = publish_bundle(training, Progress(4, 32, HISTORY), str(tmp_path / "bundle")).training
    assert record.keys() >= {"revision", "snapshot", "split", "trainedThrough", "base", "hyperparameters", "provenance"}
    assert (record["seed"], record["steps"], record["examples"]) == (0, 4, len(training.examples))
    assert record["validation"] == {name: value for name, value in LOOK.items() if name != "step"}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| uniform | 0.400 | 0.200 | 0.070 |" in card
    assert "synthetic data" in card
    assert Bundle.open(tmp_path / "bundle").training == record


def test_the_toy_base_is_called_one(training_of: Callable[..., Training], tmp_path: Path) -> None:
    training = training_of()
    tiny = training.config.model_copy(update={"base": type(training.config.base)(preset="tiny")})
    toy = Training(**{**vars(training), "config": tiny})
    publish_bundle(toy, Progress(4, 32), str(tmp_path / "bundle"))
    assert "Toy base" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_curves_are_drawn_with_and_without_validation(training_of: Callable[..., Training], tmp_path: Path) -> None:
    for number, history in enumerate((HISTORY, HISTORY[:1])):
        path = tmp_path / f"{number}.png"
        plot_curves(history, training_of().config, "synthetic", path)
        assert path.read_bytes().startswith(b"\x89PNG")

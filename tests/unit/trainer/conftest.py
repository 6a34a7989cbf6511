"""Small datasets and examples for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_core.dataset import Dataset
from retrieval_core.sources.synthetic import Snapshot, generate
from retrieval_core.sources.world import WorldSize
from retrieval_core.sources.writing import write_dataset
from retrieval_trainer.assembly import Training, assemble
from retrieval_trainer.config import TrainConfig
from retrieval_trainer.examples import TrainingExamples
from retrieval_trainer.tiny import TinyRecipe, tiny_base

Events = list[tuple[int, int, int, bool]]


@pytest.fixture
def examples_of() -> Callable[..., TrainingExamples]:
    """Examples from (member, item, time, engaged) tuples, all of them training events."""

    def build(events: Events, *, items: int, created_at: list[int] | None = None) -> TrainingExamples:
        ordered = sorted(events, key=lambda e: (e[2], e[0], e[1]))
        engaged_pairs = {(m, i) for m, i, _, engaged in ordered if engaged}
        positives = [(m, i, t) for m, i, t, engaged in ordered if engaged]
        shown = sorted(
            ((m, t, i) for m, i, t, engaged in ordered if not engaged and (m, i) not in engaged_pairs),
            key=lambda e: (e[0], e[1]),
        )
        members = 1 + max(e[0] for e in events)
        starts = np.searchsorted([m for m, _, _ in shown], np.arange(members + 1)) if shown else np.zeros(members + 1)
        return TrainingExamples(
            member=_array([m for m, _, _ in positives], np.int32),
            item=_array([i for _, i, _ in positives], np.int32),
            time=_array([t for _, _, t in positives], np.int64),
            impressed_item=_array([i for _, _, i in shown], np.int32),
            impressed_time=_array([t for _, t, _ in shown], np.int64),
            impressed_from=starts.astype(np.int64),
            engaged_keys=_array(sorted(m * items + i for m, i in engaged_pairs), np.int64),
            item_created_at=None if created_at is None else _array(created_at, np.int64),
            item_count=items,
        )

    return build


@pytest.fixture
def feed_of(examples_of: Callable[..., TrainingExamples]) -> Callable[[int], TrainingExamples]:
    """A seeded feed with Zipf popularity: so many members, 200 items, pages of ten with one or two engagements."""

    def build(members: int) -> TrainingExamples:
        random = np.random.default_rng(7)
        popularity = 1.0 / np.arange(1, 201)
        events: Events = []
        for member in range(members):
            for page in range(8):
                shown = random.choice(200, size=10, replace=False, p=popularity / popularity.sum())
                engaged = set(random.choice(10, size=random.integers(1, 3), replace=False).tolist())
                events += [(member, int(item), 1000 * page + member, k in engaged) for k, item in enumerate(shown)]
        return examples_of(events, items=200)

    return build


@pytest.fixture
def feed(feed_of: Callable[[int], TrainingExamples]) -> TrainingExamples:
    """The feed of 60 members."""
    return feed_of(60)


def _array(values: Any, dtype: Any) -> Any:
    return np.asarray(values, dtype=dtype)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small synthetic feed: 200 members, 300 items, 3000 interactions over six days, the last one is test."""
    size = WorldSize(members=200, items=300, interactions=3000, horizon_days=6, seed=0)
    path = tmp_path_factory.mktemp("datasets") / "feed"
    return write_dataset(str(path), generate(size, Snapshot(days=6, test_days=1, shuffle_labels=False), range(6)))


@pytest.fixture(scope="session")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of width 16 with two layers and its tokenizer, hardly pretrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAL_BASE_CACHE", str(tmp_path_factory.mktemp("bases")))
        return tiny_base(
            dataset, TinyRecipe(vocabulary=400, width=16, heads=2, feed_forward=32, block=32, batch=4, steps=2)
        )


@pytest.fixture
def config_of(dataset: Dataset, base: Path) -> Callable[..., TrainConfig]:
    """A configuration of a short training; keyword arguments change hyperparameters by their YAML names."""

    def build(**hyperparameters: Any) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "formatVersion": 1,
                "revision": "test",
                "dataset": str(dataset.path),
                "base": {"uri": str(base)},
                "dimensions": [16, 8],
                "hyperparameters": {"steps": 4, "batchSize": 8, "learningRate": 1e-3} | hyperparameters,
            }
        )

    return build


@pytest.fixture
def training_of(config_of: Callable[..., TrainConfig]) -> Callable[..., Training]:
    """An assembled training on the CPU."""
    return lambda **hyperparameters: assemble(config_of(**hyperparameters), torch.device("cpu"))

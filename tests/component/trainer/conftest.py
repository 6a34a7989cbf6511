"""A small dataset, a small base and the command line, for trainings that really run."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_core.dataset import Dataset
from retrieval_core.sources.synthetic import Snapshot, generate
from retrieval_core.sources.world import WorldSize
from retrieval_core.sources.writing import write_dataset
from retrieval_trainer.tiny import TinyRecipe, tiny_base


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small synthetic feed: 200 members, 300 items, 3000 interactions over six days, the last one is test."""
    size = WorldSize(members=200, items=300, interactions=3000, horizon_days=6, seed=0)
    path = tmp_path_factory.mktemp("datasets") / "feed"
    return write_dataset(str(path), generate(size, Snapshot(days=6, test_days=1), range(6)))


@pytest.fixture(scope="session")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of width 16 with two layers and its tokenizer, hardly pretrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAL_BASE_CACHE", str(tmp_path_factory.mktemp("bases")))
        return tiny_base(
            dataset, TinyRecipe(vocabulary=400, width=16, heads=2, feed_forward=32, block=32, batch=4, steps=2)
        )


@pytest.fixture(scope="session")
def config_text(dataset: Dataset, base: Path) -> Callable[..., str]:
    """An inline --config; keyword arguments change hyperparameters by their YAML names."""

    def build(revision: str = "r1", *, base_uri: Path = base, **hyperparameters: Any) -> str:
        return json.dumps(
            {
                "formatVersion": 1,
                "revision": revision,
                "dataset": str(dataset.path),
                "base": {"uri": str(base_uri)},
                "dimensions": [16, 8],
                "hyperparameters": {"steps": 6, "batchSize": 8, "learningRate": 1e-3} | hyperparameters,
            }
        )

    return build


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Wait until something happened, as long as the process lives."""
    pause = threading.Event()

    def wait(happened: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 90) -> None:
        for _ in range(int(timeout_s / 0.01)):
            if happened():
                return
            assert process.poll() is None, process.communicate()
            pause.wait(0.01)
        raise AssertionError("it took too long")

    return wait


@pytest.fixture(scope="session")
def newest_step() -> Callable[[Path], int]:
    """The step of the newest complete checkpoint of a directory."""
    return lambda checkpoints: max(
        int(path.parent.name.removeprefix("step-")) for path in checkpoints.glob("step-*/checkpoint.json")
    )

"""A small written dataset and a real, tiny bundle: random weights, so nothing is learnt, but all is exercised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrieval_core.bundle import write_bundle
from retrieval_core.dataset import open_dataset
from retrieval_core.prompts import Percentiles, PromptSpec, add_tokens
from retrieval_indexer.build import BuildRequest, IndexBuild
from retrieval_indexer.corpus import Shard

DAY = 86_400
START = 1_700_000_000
TOPICS = ("data", "food", "sport", "music")

SPEC = {
    "member": {
        "fields": [
            {"name": "headline", "rendering": "text", "maxTokens": 16},
            {"name": "activity", "rendering": "percentile"},
        ],
        "history": {"maxItems": 3, "fields": [{"name": "title", "rendering": "text", "maxTokens": 12}]},
        "maxTokens": 80,
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


def write_dataset(
    directory: Path,
    *,
    mode: str = "global",
    members: int = 60,
    items: int = 240,
    events_per_member: int = 12,
    created: bool = True,
    seed: int = 0,
    row_group: int = 50,
) -> Path:
    """Members engage with items over 40 days; every third interaction is an impression only."""
    random = np.random.default_rng(seed)
    rows: list[tuple[str, str, int, bool]] = []
    created_at = [START + (0 if i < items * 0.8 else int(random.integers(0, 39 * DAY))) for i in range(items)]
    for member in range(members):
        for number, item in enumerate(random.choice(items, events_per_member, replace=False)):
            time = max(START + int(random.integers(0, 40 * DAY)), created_at[item] + 1)
            rows.append((f"m{member}", f"i{item}", time, number % 3 != 2))
    spec: dict[str, Any] = {
        "formatVersion": 1,
        "name": "test-feed",
        "provenance": "synthetic",
        "members": {
            "id": "member_id",
            "text": ["headline"],
            "category": ["industry"],
            "createdAt": "joined_at",
        },
        "items": {"id": "item_id", "text": ["title"], "category": ["topic"], "attributes": ["author", "tags"]},
        "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
        "counts": {"windowDays": 10},
        "split": {"mode": mode, "testFraction": 0.3},
        "validationMembers": 0.1,
    }
    if created:
        spec["items"]["createdAt"] = "created_at"
    for folder in ("members", "items", "interactions"):
        (directory / folder).mkdir(parents=True)
    pq.write_table(
        pa.table(
            {
                "member_id": [f"m{m}" for m in range(members)],
                "headline": [f"{TOPICS[m % 4]} person {m}" for m in range(members)],
                "industry": [TOPICS[m % 4] for m in range(members)],
                "joined_at": [START - (60 * DAY if m % 2 else 0) for m in range(members)],
            }
        ),
        directory / "members" / "0.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "item_id": [f"i{i}" for i in range(items)],
                "title": [f"{TOPICS[i % 4]} story {i}" for i in range(items)],
                "topic": [TOPICS[i % 4] for i in range(items)],
                "author": [f"a{i % 7}" if i % 11 else None for i in range(items)],
                "tags": [[TOPICS[i % 4], TOPICS[(i + 1) % 4]] if i % 5 else [] for i in range(items)],
                "created_at": created_at,
            }
        ),
        directory / "items" / "0.parquet",
        row_group_size=row_group,
    )
    names = ("member_id", "item_id", "time", "engaged")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    pq.write_table(pa.table(columns), directory / "interactions" / "0.parquet")
    (directory / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte by byte: nothing to train, nothing unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>")


def write_tiny_bundle(
    directory: Path, *, seed: int = 0, training: dict[str, Any] | None = None, collapsed: bool = False
) -> Path:
    spec = PromptSpec.parse(SPEC)
    percentiles = Percentiles.fit(
        spec, {"member.activity": np.arange(1, 12), "item.engagements": np.asarray([0, 1, 1, 2, 2, 3, 4, 5, 6])}
    )
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
        )
    )
    add_tokens(tokenizer, model, spec, percentiles, seed=seed)
    if collapsed:  # every token has the same embedding, so every prompt has the same vector
        model.get_input_embeddings().weight.data[:] = torch.linspace(-1, 1, 32)
    write_bundle(
        directory,
        model=model,
        tokenizer=tokenizer,
        prompts=spec,
        percentiles=percentiles,
        dimensions=[32, 16],
        dimension=32,
        training={"revision": "r1", "provenance": "synthetic", "seed": seed, "steps": 0, "trainedThrough": 0}
        | (training or {}),
        card="Random weights, for tests.",
    )
    return directory


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("datasets")
    return {mode: write_dataset(root / mode, mode=mode) for mode in ("global", "perMember")}


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle"))


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    return write_tiny_bundle


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    return write_dataset


def build_generation(dataset: Path, bundle: str, out: Path, **changed: Any) -> str:
    """Build a generation as the command line does; returns its URI."""
    arguments: dict[str, Any] = {"kind": "evaluation", "factory": "Flat", "served_k": 50} | changed
    task = IndexBuild(BuildRequest(bundle=bundle, dataset=str(dataset), out=str(out), **arguments))
    for number in range(task.request.shards):
        task.encode(Shard(number, task.request.shards))
    task.merge()
    return str(out)


@pytest.fixture(scope="session")
def build() -> Callable[..., str]:
    return build_generation


@pytest.fixture(scope="session")
def generations(datasets: dict[str, Path], bundle_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An evaluation generation per split mode, with member vectors."""
    root = tmp_path_factory.mktemp("generations")
    return {
        mode: build_generation(path, bundle_uri, root / mode, members=True, shards=3) for mode, path in datasets.items()
    }


@pytest.fixture(scope="session")
def open_datasets(datasets: dict[str, Path]) -> dict[str, Any]:
    return {mode: open_dataset(str(path)) for mode, path in datasets.items()}

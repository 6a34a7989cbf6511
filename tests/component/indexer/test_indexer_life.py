"""Real processes: a build that is killed and started again, and a served stack that is verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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
from retrieval_core.dataset.features import FeatureView
from retrieval_core.generation import Generation
from retrieval_core.prompts import Percentiles, PromptSpec, add_tokens

pytestmark = pytest.mark.component

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("core", "indexer", "encoder_server"))
SHARDS = 6
HOUR = 3600
START = 1_700_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "feed"
    random = np.random.default_rng(0)
    tables = {
        "members": {"member_id": [f"m{m}" for m in range(40)], "headline": [f"person {m}" for m in range(40)]},
        "items": {"item_id": [f"i{i}" for i in range(600)], "title": [f"a story about thing {i}" for i in range(600)]},
        "interactions": {
            "member_id": [f"m{m}" for m in np.repeat(np.arange(40), 20)],
            "item_id": [f"i{i}" for _ in range(40) for i in random.choice(600, 20, replace=False)],
            "time": [START + int(t) for t in random.integers(0, 500 * HOUR, 800)],
            "engaged": [bool(n % 4) for n in range(800)],
        },
    }
    for folder, columns in tables.items():
        (directory / folder).mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / folder / "0.parquet", row_group_size=50)
    document = {
        "formatVersion": 1,
        "name": "component-feed",
        "provenance": "synthetic",
        "members": {"id": "member_id", "text": ["headline"]},
        "items": {"id": "item_id", "text": ["title"]},
        "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
        "split": {"mode": "global", "testFraction": 0.2},
    }
    (directory / "dataset.yaml").write_text(yaml.safe_dump(document))
    return directory


@pytest.fixture(scope="module")
def bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default prompts over a byte-level tokenizer and a one-layer model with random weights."""
    opened = open_dataset(str(dataset))
    spec = PromptSpec.default_for(opened.spec)
    counts = FeatureView(opened).item_counts(np.arange(600, dtype=np.int32), np.full(600, opened.last_event_time))
    percentiles = Percentiles.fit(spec, {"item.engagements": counts.engagements, "member.activity": np.arange(1, 15)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={"<s>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **config))
    add_tokens(tokenizer, model, spec, percentiles, seed=0)
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(
        directory,
        model=model,
        tokenizer=tokenizer,
        prompts=spec,
        percentiles=percentiles,
        dimensions=[32],
        dimension=32,
        training={"provenance": "synthetic", "steps": 0},
        card="Random weights, for tests.",
    )
    return directory


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": SOURCES,
        "RETRIEVAL_LOG_FORMAT": "json",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    return said


def read_until(process: subprocess.Popen[str], event: str, times: int = 1) -> dict:
    """The line of the last of `times` such events; fails with all that was said when the process ends before."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("{") and json.loads(line).get("event") == event:
            times -= 1
            if not times:
                return json.loads(line)
    raise AssertionError(f"no {event!r} in {''.join(said)}")


def index_arguments(bundle: Path, dataset: Path, out: Path) -> list[str]:
    return [
        "build", "--bundle", str(bundle), "--dataset", str(dataset), "--kind", "serving", "--members",
        "--shards", str(SHARDS), "--out", str(out),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def index(bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without an interruption."""
    out = tmp_path_factory.mktemp("index") / "whole"
    finish(start("retrieval_indexer.cli", *index_arguments(bundle, dataset, out)))
    return out


def test_a_build_that_is_killed_continues_where_it_was(bundle, dataset, index, tmp_path):
    arguments = index_arguments(bundle, dataset, tmp_path / "index")
    first = start("retrieval_indexer.cli", *arguments)
    read_until(first, "shard encoded", times=2)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    assert not (tmp_path / "index" / "MANIFEST.json").exists()
    kept = {name: (tmp_path / "index" / "shards" / name).stat().st_mtime_ns for name in ("00000.json", "00001.json")}
    finish(start("retrieval_indexer.cli", *arguments))
    assert kept == {name: (tmp_path / "index" / "shards" / name).stat().st_mtime_ns for name in kept}
    assert Generation.open(str(tmp_path / "index")).id == Generation.open(str(index)).id


def test_a_served_stack_equals_direct_computation(bundle, dataset, index, tmp_path):
    server = start(
        "retrieval_encoder_server.cli", "--bundle-uri", str(bundle), "--generation-uri", str(index),
        "--host", "127.0.0.1", "--port", "0",
    )  # fmt: skip
    try:
        url = read_until(server, "ready")["url"]
        said = finish(
            start(
                "retrieval_indexer.evaluate_cli",
                "verify",
                "--url",
                url,
                "--bundle",
                str(bundle),
                "--generation",
                str(index),
                "--dataset",
                str(dataset),
                "--members",
                "20",
                "--k",
                "100",
                "--out",
                str(tmp_path / "verification"),
            )
        )
    finally:
        server.kill()
        server.communicate(timeout=30)
    document = json.loads((tmp_path / "verification" / "verification.json").read_text())
    assert (document["asked"], document["matched"], document["mismatches"]) == (20, 20, [])
    assert document["maxScoreError"] < 1e-4
    assert document["latencyMs"]["p99"] > 0
    assert "synthetic: 20 of 20 answers equal direct computation" in said

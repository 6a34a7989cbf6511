"""A small real bundle and generation, and real server processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from retrieval_core.bundle import Bundle, write_bundle
from retrieval_core.encoding import Encoder
from retrieval_core.generation import Generation
from retrieval_core.prompts import Percentiles, PromptSpec, add_tokens
from retrieval_indexer.build import BuildRequest, IndexBuild
from retrieval_indexer.corpus import Shard

WIDTH, SERVED = 32, 16
MEMBERS, ITEMS = 12, 120
DAY = 86_400
START = 1_700_000_000
TEXT = "data retrieval ranking feed coffee bread travel music garden chess river mountain paint poem engine cloud"
WORDS = TEXT.split()

PROMPTS = PromptSpec.model_validate(
    {
        "member": {
            "system": "A member of a feed.",
            "fields": [
                {"name": "headline", "rendering": "text", "maxTokens": 12},
                {"name": "activity", "rendering": "percentile"},
            ],
            "history": {"maxItems": 4, "fields": [{"name": "title", "rendering": "text", "maxTokens": 10}]},
            "maxTokens": 80,
        },
        "item": {
            "fields": [
                {"name": "title", "rendering": "text", "maxTokens": 16},
                {"name": "topic", "rendering": "category", "maxTokens": 8},
                {"name": "engagements", "rendering": "percentile"},
            ],
            "maxTokens": 48,
        },
    }
)


def write_dataset(directory: Path) -> Path:
    """Seeded members, items and interactions."""
    rng = np.random.default_rng(0)
    phrase = lambda count: " ".join(rng.choice(WORDS, count))  # noqa: E731
    tables = {
        "members": {"member_id": [f"m{n}" for n in range(MEMBERS)], "headline": [phrase(4) for _ in range(MEMBERS)]},
        "items": {
            "item_id": [f"i{n}" for n in range(ITEMS)],
            "title": [f"{phrase(5)} {n}" for n in range(ITEMS)],
            "topic": [WORDS[n % 5] for n in range(ITEMS)],
            "author": [f"a{n % 7}" for n in range(ITEMS)],
        },
        "interactions": {
            "member_id": [f"m{n % MEMBERS}" for n in range(600)],
            "item_id": [f"i{n}" for n in rng.integers(0, ITEMS, 600)],
            "time": [START + n * DAY // 20 for n in range(600)],
            "engaged": [bool(n % 3) for n in range(600)],
        },
    }
    for name, columns in tables.items():
        (directory / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / name / "part-0.parquet")
    document = {
        "formatVersion": 1,
        "name": "server-test",
        "provenance": "synthetic",
        "members": {"id": "member_id", "text": ["headline"]},
        "items": {"id": "item_id", "text": ["title"], "category": ["topic"], "attributes": ["author"]},
        "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
        "counts": {"windowDays": 30},
        "split": {"mode": "global", "testFraction": "0.2"},
        "validationMembers": "0.1",
    }
    (directory / "dataset.yaml").write_text(yaml.safe_dump(document))
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def write_tiny_bundle(directory: Path, seed: int = 0) -> Path:
    """An untrained two-layer model; `seed` decides its weights and so the bundle's id."""
    counts = np.random.default_rng(0).geometric(0.2, size=500) - 1
    percentiles = Percentiles.fit(PROMPTS, {"member.activity": counts, "item.engagements": counts * 3})
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = LlamaModel(config).eval()
    add_tokens(tokenizer, model, PROMPTS, percentiles, seed=0)
    write_bundle(
        directory,
        model=model,
        tokenizer=tokenizer,
        prompts=PROMPTS,
        percentiles=percentiles,
        dimensions=[WIDTH, SERVED],
        dimension=WIDTH,
        training={"revision": "r1", "snapshot": "0" * 16, "provenance": "synthetic", "seed": seed, "steps": 0},
        card="Untrained; for tests of the server.",
    )
    return directory


@dataclass
class Stack:
    """What is served, and the direct computation that answers must equal."""

    bundle_path: Path
    generation_path: Path
    bundle: Bundle = field(init=False)
    generation: Generation = field(init=False)
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.bundle = Bundle.open(self.bundle_path)
        self.generation = Generation.open(str(self.generation_path))
        self.encoder = Encoder(self.bundle)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    root = tmp_path_factory.mktemp("stack")
    dataset = write_dataset(root / "dataset")
    bundle = write_tiny_bundle(root / "bundle")
    build = IndexBuild(
        BuildRequest(
            bundle=str(bundle),
            dataset=str(dataset),
            kind="serving",
            out=str(root / "generation"),
            served_dimension=SERVED,
            served_k=50,
            members=True,
        )
    )
    build.encode(Shard(0, 1))
    build.merge()
    return Stack(bundle, root / "generation")


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("other") / "bundle", seed=1)


@dataclass
class Process:
    """A server process; its log lines are parsed as they come."""

    popen: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, timeout_s: float = 150) -> dict[str, Any]:
        """The first log line of that event; fails with the whole log when the process ends without it."""
        find = lambda: next((line for line in self.log if line["event"] == event), None)  # noqa: E731
        with self._said:
            self._said.wait_for(lambda: find() or not self._reader.is_alive(), timeout_s)
            line = find()
        assert line, f"no {event!r} in {self.log} {self.plain}"
        return line

    @property
    def url(self) -> str:
        return str(self.wait_for("ready")["url"])

    @property
    def grpc_address(self) -> str:
        return str(self.wait_for("ready")["grpc"])

    def term(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def exit_code(self, timeout_s: float = 30) -> int:
        code = self.popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.plain)

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            with self._said:
                try:
                    self.log.append(json.loads(line))
                except json.JSONDecodeError:
                    self.plain.append(line.rstrip())
                self._said.notify_all()
        with self._said:
            self._said.notify_all()


@pytest.fixture(scope="session")
def _spawn() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def spawn(**settings: Any) -> Process:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RETRIEVAL_LOG_FORMAT": "json",
            "OMP_NUM_THREADS": "1",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "retrieval_encoder_server.cli"]
        popen = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        processes.append(Process(popen))
        return processes[-1]

    yield spawn
    for process in processes:
        process.popen.kill()
        process.popen.wait()


@pytest.fixture(scope="session")
def spawn(_spawn: Callable[..., Process], stack: Stack) -> Callable[..., Process]:
    """`spawn(drain_seconds=2)` starts a server process of the stack with these settings; PORT is free by default."""

    def start(**settings: Any) -> Process:
        defaults = {"port": 0, "bundle_uri": stack.bundle_path, "generation_uri": stack.generation_path}
        return _spawn(**{name: value for name, value in {**defaults, **settings}.items() if value is not None})

    return start


@pytest.fixture(scope="session")
def served_process(spawn: Callable[..., Process]) -> Process:
    """One server process that tests share and leave as they found it."""
    return spawn(grpc_port=0)


@pytest.fixture(scope="session")
def served(served_process: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served_process.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def served_over_grpc(served_process: Process) -> Iterator[GRPCInferenceServiceStub]:
    """The same process, over gRPC."""
    with grpc.insecure_channel(served_process.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)

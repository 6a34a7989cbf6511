"""Encode one shard: items -> prompts -> vectors on disk, shard record last.

A refresh copies the vector of every prompt that the previous generation of the same bundle has already encoded, and
equal prompts are encoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval_core.encoding import Encoder
from retrieval_core.errors import BadInput
from retrieval_core.files import read_json, sha256_file, write_json
from retrieval_core.generation import FileEntry, Generation
from retrieval_core.generation.manifest import ATTRIBUTE_PREFIX, FORMAT_VERSION, items_file, shard_file, vectors_file
from retrieval_core.generation.writer import write_table, write_vectors
from retrieval_indexer.corpus import Corpus, Rows, Shard

Vectors = npt.NDArray[np.float32]
Progress = Callable[[int], None]
"""Called with the number of items finished since the last call."""

# Prompts handed to the encoder at a time: bounds memory for strings and token ids, and is how often progress moves.
PROMPTS_PER_CALL = 2048


class PreviousVectors:
    """Vectors of a previous generation by prompt hash; none when it was made by another bundle."""

    def __init__(self, generation: Generation | None, bundle_id: str) -> None:
        usable = generation is not None and generation.manifest.bundle_id == bundle_id
        self.generation = generation if usable else None
        hashes = self.generation.prompt_hashes.tolist() if self.generation is not None else []
        self._row_of = {prompt_hash: row for row, prompt_hash in enumerate(hashes)}

    def get(self, prompt_hash: str) -> Vectors | None:
        """Full-width vector of the prompt, float32 [D], or None."""
        row = self._row_of.get(prompt_hash)
        return None if row is None or self.generation is None else self.generation.vectors[row]


def prompt_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def encode_shard(
    corpus: Corpus,
    shard: Shard,
    directory: Path,
    *,
    encoder: Callable[[], Encoder],
    previous: PreviousVectors,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Write the shard's files under `directory`, unless they are there already; returns its record.

    `encoder` is called only when there is something to encode. Raises StorageFailed when the disk is full.
    """
    rows = corpus.rows(shard)
    finished = finished_shard(corpus, shard, directory)
    if finished is not None:
        progress(len(rows))
        return finished
    (directory / shard_file(shard.number)).unlink(missing_ok=True)
    active = encoder()
    prompts = [active.renderer.item(features) for features in corpus.features(rows)]
    hashes = [prompt_hash(prompt) for prompt in prompts]
    vectors, copied = _vectors_of(prompts, hashes, active, previous, progress)
    files = {
        vectors_file(shard.number): write_vectors(directory / vectors_file(shard.number), vectors),
        items_file(shard.number): _write_items(directory / items_file(shard.number), corpus, rows, hashes),
    }
    record = {
        "formatVersion": FORMAT_VERSION,
        "shard": shard.number,
        "of": shard.of,
        "inputsHash": corpus.inputs_hash(shard),
        "rows": len(rows),
        "copied": copied,
        "encoded": len(rows) - copied,
        "files": {name: entry.model_dump() for name, entry in files.items()},
    }
    write_json(directory / shard_file(shard.number), record)
    return record


def finished_shard(corpus: Corpus, shard: Shard, directory: Path) -> dict[str, Any] | None:
    """The shard's record when its files are complete, unchanged and made from these inputs; None otherwise."""
    path = directory / shard_file(shard.number)
    try:
        record = read_json(path)
        unchanged = record["inputsHash"] == corpus.inputs_hash(shard) and all(
            sha256_file(directory / name) == FileEntry.model_validate(entry).sha256
            for name, entry in record["files"].items()
        )
    except (BadInput, FileNotFoundError, KeyError, ValueError):
        return None  # absent, truncated or foreign: encoding it again is the remedy for each
    return record if unchanged else None


def _vectors_of(
    prompts: list[str], hashes: list[str], encoder: Encoder, previous: PreviousVectors, progress: Progress
) -> tuple[Vectors, int]:
    """Vectors float32 [n, D] of prompts, and how many rows were copied from the previous generation."""
    vectors = np.empty((len(prompts), encoder.dimension), dtype=np.float32)
    first_row: dict[str, int] = {}
    copied = 0
    for row, key in enumerate(hashes):
        known = previous.get(key)
        if known is not None:
            vectors[row] = known
            copied += 1
        else:
            first_row.setdefault(key, row)
    progress(copied)
    to_encode = list(first_row.values())
    for start in range(0, len(to_encode), PROMPTS_PER_CALL):
        chunk = to_encode[start : start + PROMPTS_PER_CALL]
        vectors[chunk] = encoder.encode_prompts([prompts[row] for row in chunk])
        progress(len(chunk))
    repeated = [row for row, key in enumerate(hashes) if first_row.get(key, row) != row]
    vectors[repeated] = vectors[[first_row[hashes[row]] for row in repeated]]
    progress(len(repeated))
    return vectors, copied


def _write_items(path: Path, corpus: Corpus, rows: Rows, hashes: list[str]) -> FileEntry:
    dataset = corpus.dataset
    columns: dict[str, Any] = {
        "item_id": pa.array(dataset.item_ids[rows].tolist(), type=pa.string()),
        "prompt_hash": pa.array(hashes, type=pa.string()),
    }
    for name in dataset.spec.items.attributes:
        column = dataset.item_columns[name].take(pa.array(rows))
        # An attribute that is a count as well is a number in the dataset; filters name values as strings.
        columns[ATTRIBUTE_PREFIX + name] = column if pa.types.is_list(column.type) else column.cast(pa.string())
    return write_table(path, columns)

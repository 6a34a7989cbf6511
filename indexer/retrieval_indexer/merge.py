"""Merge encoded shards into a generation: member vectors, search index, checks, and MANIFEST.json last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.files import write_json
from retrieval_core.generation import FileEntry, Generation, Manifest, generation_id
from retrieval_core.generation.manifest import (
    INDEX,
    MANIFEST,
    MEMBER_IDS,
    MEMBER_VECTORS,
    items_file,
    shard_file,
    vectors_file,
)
from retrieval_core.generation.search import index_bytes, library_version
from retrieval_core.generation.writer import write_bytes, write_table, write_vectors
from retrieval_indexer.checks import check_generation, finite_rows, sample_rows
from retrieval_indexer.corpus import Corpus, Shard
from retrieval_indexer.encode import PROMPTS_PER_CALL, Progress, finished_shard
from retrieval_indexer.factory import derive_index, resolve_factory

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class IndexSettings:
    """How the search index is derived from the vectors; another setting needs no encoding."""

    factory: str
    served_dimension: int
    served_k: int
    members: bool
    """Whether member vectors are stored, for retrieval by member id."""


@dataclass(frozen=True)
class _Encoded:
    vectors: Vectors
    prompt_hashes: npt.NDArray[np.str_]
    files: dict[str, FileEntry]
    copied: int


def found_complete(corpus: Corpus, settings: IndexSettings, directory: Path) -> Manifest | None:
    """The manifest of a generation that this build has already finished here; None when there is none.

    Raises BadInput when the directory holds another generation: generations are immutable.
    """
    if not (directory / MANIFEST).exists():
        return None
    manifest = Generation.open(str(directory)).manifest
    wanted = {
        "kind": corpus.kind,
        "bundleId": corpus.bundle.id,
        "snapshot": corpus.dataset.snapshot,
        "asOf": corpus.as_of,
        "servedDimension": settings.served_dimension,
        "servedK": settings.served_k,
        "factory": resolve_factory(settings.factory, manifest.count, settings.served_dimension),
    }
    document = manifest.document()
    different = [
        f"{key} {document[key]!r} (asked for {value!r})" for key, value in wanted.items() if document[key] != value
    ]
    if settings.members != bool(manifest.members):
        different.append(f"members {manifest.members}")
    if different:
        raise BadInput(f"{directory} holds generation {manifest.id} with {', '.join(different)}; choose another --out")
    return manifest


def merge_shards(
    corpus: Corpus,
    shards: int,
    settings: IndexSettings,
    directory: Path,
    *,
    encoder: Callable[[], Encoder],
    previous_id: str | None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the generation out of `shards` finished shards under `directory`; every file is written before the manifest.

    Raises BadArguments when a shard is missing, BadInput when nothing exists at asOf, StorageFailed on a full disk.
    """
    encoded = _gather(corpus, shards, directory)
    _remove_leftovers(directory, shards)
    member_vectors: Vectors = np.empty((0, encoded.vectors.shape[1]), np.float32)
    member_files: dict[str, FileEntry] = {}
    if settings.members:
        member_vectors, member_files = _encode_members(corpus, directory, encoder(), progress)
    served = truncate(_searchable(encoded.vectors), settings.served_dimension)
    factory = resolve_factory(settings.factory, len(served), settings.served_dimension)
    queries = _queries(served, truncate(_searchable(member_vectors), settings.served_dimension))
    try:
        built = derive_index(served, factory, queries, min(settings.served_k, len(served)))
    except ValueError as error:
        raise BadArguments(f"--factory: {error}; use Flat or auto, or a factory that fits the corpus") from None
    checks = check_generation(
        vectors=encoded.vectors,
        served=served,
        member_vectors=member_vectors,
        prompt_hashes=encoded.prompt_hashes,
        index=built.index,
        parameters=built.parameters,
        recall=built.recall,
        existing=int(np.count_nonzero(corpus.present)),
    )
    index_file = write_bytes(directory / INDEX, index_bytes(built.index))
    manifest = _manifest(
        kind=corpus.kind,
        bundle_id=corpus.bundle.id,
        snapshot=corpus.dataset.snapshot,
        as_of=corpus.as_of,
        count=len(encoded.vectors),
        dimension=encoded.vectors.shape[1],
        served_dimension=settings.served_dimension,
        factory=factory,
        parameters=built.parameters,
        library={"faiss": library_version()},
        served_k=settings.served_k,
        checks=checks,
        previous=previous_id,
        copied=encoded.copied,
        encoded=len(encoded.vectors) - encoded.copied,
        members=len(member_vectors),
        files={**encoded.files, **member_files, INDEX: index_file},
    )
    write_json(directory / MANIFEST, manifest.document())
    return manifest


def _manifest(**fields: Any) -> Manifest:
    unnamed = Manifest(id="", **fields)
    return unnamed.model_copy(update={"id": generation_id(unnamed.document())})


def _gather(corpus: Corpus, shards: int, directory: Path) -> _Encoded:
    records = [finished_shard(corpus, Shard(number, shards), directory) for number in range(shards)]
    missing = [f"{number}/{shards}" for number, record in enumerate(records) if record is None]
    if missing:
        raise BadArguments(
            f"{directory}: shards {', '.join(missing)} are not encoded; run encode --shard for each first"
        )
    done = [record for record in records if record is not None]
    if not sum(record["rows"] for record in done):
        raise BadInput(f"no item of {corpus.dataset.spec.name} exists at asOf {corpus.as_of}")
    files = {name: FileEntry.model_validate(entry) for record in done for name, entry in record["files"].items()}
    width = max(files[vectors_file(n)].size // (4 * record["rows"]) for n, record in enumerate(done) if record["rows"])
    vectors = [np.fromfile(directory / vectors_file(n), dtype="<f4").reshape(-1, width) for n in range(shards)]
    hashes = [pq.read_table(directory / items_file(n))["prompt_hash"].to_pylist() for n in range(shards)]
    return _Encoded(
        vectors=np.concatenate(vectors),
        prompt_hashes=np.asarray([key for shard in hashes for key in shard], dtype=np.str_),
        files=files,
        copied=sum(record["copied"] for record in done),
    )


def _remove_leftovers(directory: Path, shards: int) -> None:
    """Files of an earlier, interrupted build: of more shards than this one has, or half-written."""
    kept = {name(number) for number in range(shards) for name in (vectors_file, items_file, shard_file)}
    for folder in ("vectors", "items", "shards"):
        for path in (directory / folder).glob("*"):
            if path.relative_to(directory).as_posix() not in kept:
                path.unlink()
    for path in (*directory.glob(".*.tmp"), *directory.glob("members/.*.tmp")):
        path.unlink()


def _encode_members(
    corpus: Corpus, directory: Path, encoder: Encoder, progress: Progress
) -> tuple[Vectors, dict[str, FileEntry]]:
    """Vectors of every member that had joined by asOf, as of then."""
    dataset, history = corpus.dataset, corpus.bundle.prompts.member.history
    joined = dataset.member_joined_at
    rows = np.arange(len(dataset.member_ids)) if joined is None else np.flatnonzero(joined <= corpus.as_of)
    max_history = history.max_items if history is not None else 0
    vectors = np.empty((len(rows), encoder.dimension), dtype=np.float32)
    for start in range(0, len(rows), PROMPTS_PER_CALL):
        chunk = rows[start : start + PROMPTS_PER_CALL]
        features = [corpus.view.member_features(int(row), corpus.as_of, max_history) for row in chunk]
        vectors[start : start + len(chunk)] = encoder.encode_members(features)
        progress(len(chunk))
    ids = pa.array(dataset.member_ids[rows].tolist(), type=pa.string())
    files = {
        MEMBER_VECTORS: write_vectors(directory / MEMBER_VECTORS, vectors),
        MEMBER_IDS: write_table(directory / MEMBER_IDS, {"member_id": ids}),
    }
    return vectors, files


def _searchable(vectors: Vectors) -> Vectors:
    """Vectors an index can be built from: one that is not finite becomes zero, found by nothing.

    The stored vectors keep what the encoder gave and `checks.finite` says it, so that evaluation can name the cause.
    """
    finite = finite_rows(vectors)
    return vectors if finite.all() else np.where(finite[:, None], vectors, np.float32(0))


def _queries(items: Vectors, members: Vectors) -> Vectors:
    return np.concatenate([items[sample_rows(len(items))], members[sample_rows(len(members))]])

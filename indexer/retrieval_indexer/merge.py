"""Merge encoded shards into a generation: member vectors, search index, checks, and MANIFEST.json last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.differences import differences
from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.files import write_json
from retrieval_core.generation import FileEntry, Generation, Latency, Manifest, generation_id
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
from retrieval_indexer.checks import SAMPLE, check_generation, finite_rows
from retrieval_indexer.corpus import Corpus, Shard
from retrieval_indexer.encode import Progress, finished_shard
from retrieval_indexer.factory import BuiltIndex, IndexChooser, possible_factories
from retrieval_indexer.members import MemberVectors

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class IndexSettings:
    """How the search index is derived from the vectors; another setting needs no encoding."""

    factory: str
    served_dimension: int
    served_k: int
    latency_target_ms: int | None
    """With factory `auto`: Flat while its measured p50 is at most this; None decides by size."""
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
    }
    different = differences(wanted, manifest.document())
    target_ms = manifest.latency.target_ms if manifest.latency is not None else None
    if target_ms != settings.latency_target_ms:
        different.append(f"a latency target of {target_ms} ms (asked for {settings.latency_target_ms})")
    elif manifest.factory not in possible_factories(
        settings.factory, manifest.count, settings.served_dimension, settings.latency_target_ms
    ):
        different.append(f"factory {manifest.factory!r} (asked for {settings.factory!r})")
    if settings.members != (MEMBER_IDS in manifest.files):
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

    Raises BadArguments when a shard is missing or the factory does not fit, BadInput when nothing exists at asOf,
    StorageFailed on a full disk.
    """
    encoded = _gather(corpus, shards, directory)
    _remove_leftovers(directory, shards)
    members = MemberVectors(corpus, encoder, stored=settings.members, progress=progress)
    member_files = _write_members(corpus, directory, members) if settings.members else {}
    served = truncate(_searchable(encoded.vectors), settings.served_dimension)
    built = _choose_index(served, members, settings)
    checks = check_generation(
        vectors=encoded.vectors,
        served=served,
        member_vectors=members.vectors,
        prompt_hashes=encoded.prompt_hashes,
        index=built.index,
        parameters=built.parameters,
        recall=built.recall,
        existing=int(np.count_nonzero(corpus.present)),
    )
    target_ms = settings.latency_target_ms
    index_file = write_bytes(directory / INDEX, index_bytes(built.index))
    manifest = _manifest(
        kind=corpus.kind,
        bundle_id=corpus.bundle.id,
        snapshot=corpus.dataset.snapshot,
        as_of=corpus.as_of,
        count=len(encoded.vectors),
        dimension=encoded.vectors.shape[1],
        served_dimension=settings.served_dimension,
        factory=built.factory,
        parameters=built.parameters,
        library={"faiss": library_version()},
        served_k=settings.served_k,
        checks=checks,
        latency=None if target_ms is None else Latency(target_ms=target_ms, p50_ms=built.p50_ms),
        previous=previous_id,
        copied=encoded.copied,
        encoded=len(encoded.vectors) - encoded.copied,
        members=len(members.rows),
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


def _write_members(corpus: Corpus, directory: Path, members: MemberVectors) -> dict[str, FileEntry]:
    ids = pa.array(corpus.dataset.member_ids[members.rows].tolist(), type=pa.string())
    return {
        MEMBER_VECTORS: write_vectors(directory / MEMBER_VECTORS, members.vectors),
        MEMBER_IDS: write_table(directory / MEMBER_IDS, {"member_id": ids}),
    }


def _choose_index(served: Vectors, members: MemberVectors, settings: IndexSettings) -> BuiltIndex:
    @cache
    def queries() -> Vectors:
        return truncate(_searchable(members.sample(SAMPLE)), settings.served_dimension)

    chooser = IndexChooser(served, min(settings.served_k, len(served)), queries)
    return chooser.choose(settings.factory, settings.latency_target_ms)


def _searchable(vectors: Vectors) -> Vectors:
    """Vectors an index can be built from: one that is not finite becomes zero, found by nothing.

    The stored vectors keep what the encoder gave and `checks.finite` says it, so that evaluation can name the cause.
    """
    finite = finite_rows(vectors)
    return vectors if finite.all() else np.where(finite[:, None], vectors, np.float32(0))

"""Open an index generation and search it. Every open proves that the files are the ones the manifest was made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval_core.encoding import truncate
from retrieval_core.errors import BadInput, validate_document
from retrieval_core.files import local_path, read_json, sha256_file
from retrieval_core.generation.manifest import (
    ATTRIBUTE_PREFIX,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MEMBER_IDS,
    MEMBER_VECTORS,
    FileEntry,
    Manifest,
    generation_id,
    items_file,
    vectors_file,
)
from retrieval_core.generation.search import Mask, SearchIndex, Vectors, read_index


@dataclass(frozen=True)
class SearchResult:
    """One entry per query, best first. An entry is shorter than k when fewer items were allowed."""

    ids: list[npt.NDArray[np.object_]]
    scores: list[npt.NDArray[np.float32]]


class Generation:
    """An index generation that was opened; immutable, and safe to search from several threads.

    Use `Generation.open`. Vectors are memory-mapped at full width; the faiss index is loaded at the first search.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._items = pa.concat_tables(pq.read_table(path / items_file(shard)) for shard in manifest.shards())
        if len(self._items) != manifest.count:
            raise BadInput(f"{path}: items/ holds {len(self._items)} rows, {MANIFEST} says {manifest.count}")

    @classmethod
    def open(
        cls, uri: str, *, expected_bundle_id: str | None = None, expected_id: str | None = None, verify: bool = True
    ) -> Generation:
        """Open the finished generation at a local or fsspec URI.

        `expected_bundle_id` and `expected_id` refuse any other bundle's or any other generation; None accepts any.
        `verify` hashes every file, so all of it is read; False compares sizes only, for whoever has just verified it.

        Raises BadInput when it is unfinished, changed, of an unknown format, or not the expected one.
        """
        path = local_path(uri)
        manifest = read_manifest(path)
        if expected_id is not None and manifest.id != expected_id:
            raise BadInput(f"{uri} is generation {manifest.id}, expected {expected_id}")
        if expected_bundle_id is not None and manifest.bundle_id != expected_bundle_id:
            raise BadInput(
                f"{uri} (generation {manifest.id}) was made by bundle {manifest.bundle_id}, expected "
                f"{expected_bundle_id}: vectors of two bundles cannot be compared; build an index with the right bundle"
            )
        for name, entry in manifest.files.items():
            _verify_file(path / name, entry, content=verify)
        return cls(path, manifest)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def count(self) -> int:
        return self.manifest.count

    @property
    def dimension(self) -> int:
        """Width of the vectors that `search` takes: the served dimension."""
        return self.manifest.served_dimension

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """Item ids, str [count], in row order. Objects: one long id does not make all of them as wide."""
        return np.asarray(self._items["item_id"].to_pylist(), dtype=np.object_)

    @cached_property
    def prompt_hashes(self) -> npt.NDArray[np.str_]:
        """Hex sha256 of each item's rendered prompt, str [count]."""
        return np.asarray(self._items["prompt_hash"].to_pylist(), dtype=np.str_)

    @property
    def attributes(self) -> Mapping[str, pa.ChunkedArray]:
        """Filterable attribute -> values in row order: string or list<string>."""
        names = [name for name in self._items.column_names if name.startswith(ATTRIBUTE_PREFIX)]
        return {name.removeprefix(ATTRIBUTE_PREFIX): self._items[name] for name in names}

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Full-width vectors, float32 [count, manifest.dimension], memory-mapped when there is one shard."""
        width = self.manifest.dimension
        shards = [_map_vectors(self.path / vectors_file(shard), width) for shard in self.manifest.shards()]
        vectors = shards[0] if len(shards) == 1 else np.concatenate(shards)
        if len(vectors) != self.count:
            raise BadInput(f"{self.path}: vectors/ holds {len(vectors)} rows, {MANIFEST} says {self.count}")
        return vectors

    @cached_property
    def served_vectors(self) -> npt.NDArray[np.float32]:
        """The vectors at the served dimension, unit length, float32 [count, dimension]."""
        if self.dimension == self.manifest.dimension:
            return self.vectors
        return truncate(self.vectors, self.dimension)

    @cached_property
    def members(self) -> Mapping[str, int]:
        """Member id -> row of its vector; empty when the generation was built without members."""
        if not self.manifest.members:
            return {}
        ids = pq.read_table(self.path / MEMBER_IDS)["member_id"].to_pylist()
        return {member: row for row, member in enumerate(ids)}

    @cached_property
    def member_vectors(self) -> npt.NDArray[np.float32]:
        """Full-width member vectors, float32 [members, manifest.dimension], memory-mapped."""
        if not self.manifest.members:
            return np.empty((0, self.manifest.dimension), np.float32)
        return _map_vectors(self.path / MEMBER_VECTORS, self.manifest.dimension)

    def member_vector(self, member_id: str) -> npt.NDArray[np.float32] | None:
        """The member's vector at the served dimension, float32 [dimension]; None for a member without one."""
        row = self.members.get(member_id)
        if row is None:
            return None
        vector: Vectors = truncate(np.array(self.member_vectors[row : row + 1]), self.dimension)[0]
        return vector

    def search(
        self,
        queries: Vectors,
        k: int,
        exclude: Sequence[Sequence[str]] | None = None,
        allowed: Mapping[str, Collection[str]] | None = None,
    ) -> SearchResult:
        """The min(k, items that remain) best items for each query, by inner product, best first.

        `queries`: float32 [n, dimension], unit length, encoded by this generation's bundle.
        `k`: at least 1; more than the corpus means all of it.
        `exclude`: item ids per query that must not be returned; ids that are not in the corpus are ignored.
        `allowed`: attribute -> accepted values, for all queries. An item must have an accepted value of every named
        attribute (any of its values, for a list). None allows every item.

        Raises ValueError on wrong shapes, k < 1, an unknown attribute, or a query that is not finite.
        """
        queries = self._checked_queries(queries, k, exclude)
        mask = None if allowed is None else self.allowed_rows(allowed)
        # Ask for so many more that the exclusions of the longest list cannot leave an answer short.
        excluded = [self._rows_of(ids) for ids in exclude] if exclude is not None else [set[int]()] * len(queries)
        reach = k + max((len(rows) for rows in excluded), default=0)
        scores, rows = self.index.search(queries, reach, mask)
        for query, hidden in enumerate(excluded):
            if hidden:
                kept = ~np.isin(rows[query], list(hidden))
                scores[query], rows[query] = scores[query][kept], rows[query][kept]
        return SearchResult([self.ids[r[:k]] for r in rows], [s[:k] for s in scores])

    @cached_property
    def index(self) -> SearchIndex:
        return SearchIndex(read_index(self.path / INDEX), self.served_vectors, self.manifest.parameters)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Item id -> row."""
        return {item: row for row, item in enumerate(self.ids.tolist())}

    def allowed_rows(self, allowed: Mapping[str, Collection[str]]) -> Mask:
        """Mask over all rows of the items that have an accepted value of every named attribute. bool [count]."""
        mask = np.ones(self.count, dtype=np.bool_)
        for name, values in allowed.items():
            if name not in self.attributes:
                known = ", ".join(sorted(self.attributes)) or "none"
                raise ValueError(f"attribute {name!r} is not filterable in generation {self.id}; filterable: {known}")
            mask &= _having_any(self.attributes[name], values)
        return mask

    def _rows_of(self, ids: Sequence[str]) -> set[int]:
        return {row for row in map(self.row_of.get, ids) if row is not None}

    def _checked_queries(self, queries: Vectors, k: int, exclude: Sequence[Sequence[str]] | None) -> Vectors:
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries have shape {queries.shape}, expected [n, {self.dimension}]")
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"exclude has {len(exclude)} lists for {len(queries)} queries")
        if not np.isfinite(queries).all():
            raise ValueError("a query vector has a component that is not a finite number")
        return np.ascontiguousarray(queries, dtype=np.float32)


def read_manifest(path: Path) -> Manifest:
    """Read and prove the manifest alone; BadInput when it is absent, truncated, changed or of an unknown format."""
    document = read_json(path / MANIFEST, known_version=FORMAT_VERSION)
    manifest = validate_document(Manifest, document, str(path / MANIFEST))
    computed = generation_id(manifest.document())
    if computed != manifest.id:
        raise BadInput(f"{path / MANIFEST} says id {manifest.id}, but its content has id {computed}: it was changed")
    return manifest


def _verify_file(path: Path, entry: FileEntry, *, content: bool) -> None:
    if not path.is_file():
        raise BadInput(f"{path} is missing, but {MANIFEST} lists it: the generation is damaged; build it again")
    size = path.stat().st_size
    if size != entry.size:
        raise BadInput(f"{path} has {size} bytes, {MANIFEST} says {entry.size}: build the generation again")
    if content and sha256_file(path) != entry.sha256:
        raise BadInput(f"{path} does not have the sha256 that {MANIFEST} says: it was changed; build it again")


def _map_vectors(path: Path, width: int) -> Vectors:
    if path.stat().st_size == 0:  # a shard all of whose items are younger than asOf
        return np.empty((0, width), np.float32)
    if path.stat().st_size % (4 * width):
        raise BadInput(f"{path} is not a whole number of float32 rows of width {width}")
    return np.memmap(path, dtype="<f4", mode="r").reshape(-1, width)


def _having_any(column: pa.ChunkedArray, values: Collection[str]) -> Mask:
    """Rows whose value, or one of whose values, is in `values`."""
    accepted: Any = pa.array(sorted(values), type=pa.string())
    if not pa.types.is_list(column.type):
        return np.asarray(pc.fill_null(pc.is_in(column, value_set=accepted), False))
    column = column.combine_chunks()
    rows = np.asarray(pc.list_parent_indices(column))
    hits = np.asarray(pc.fill_null(pc.is_in(pc.list_flatten(column), value_set=accepted), False))
    mask = np.zeros(len(column), dtype=np.bool_)
    mask[rows[hits]] = True
    return mask

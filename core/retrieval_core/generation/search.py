"""Search by inner product: the one module that imports faiss.

`SearchIndex` answers "the best k of the allowed rows" and never less: a faiss index is asked first, every filtered
answer is checked, and whatever an approximate index could not fill is answered by an exact scan.

Two traps of faiss 1.15 shape this module. `IndexRefineSearchParameters(sel=...)` is silently ignored, only a selector
inside `base_index_params` filters; so exactly one function here makes search parameters, for any nesting of indexes.
And OpenMP threads are set per Python thread; so each search sets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss as untyped_faiss
import numpy as np
import numpy.typing as npt

# Its stubs lack the keyword constructors of search parameters (faiss-cpu 1.15.1).
faiss: Any = untyped_faiss

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Below this share of allowed rows an exact scan of them is both faster and complete. Measured with IVF, nprobe 256,
# k 2000, 100k x 512: at 1 % the index returned 502 of 2000 in more time than the scan's 0.27 ms; at 10 % the scan
# took 15.6 ms, the whole Flat index 17.8 ms. (facts of faiss 1.15.1, one thread)
EXACT_SCAN_SHARE = 0.02
# A filter hides part of each inverted list, so more lists are probed. Gut feeling: double is enough above 2 %, because
# the exact scan repairs what is still missing.
FILTERED_BREADTH = 2


class FilterViolated(RuntimeError):
    """An index returned a row that its selector forbids: a defect of faiss or of this module, never to be served."""


def library_version() -> str:
    return str(faiss.__version__)


def build_index(vectors: Vectors, factory: str) -> Any:
    """An inner-product faiss index over float32 [n, d] unit vectors.

    Raises ValueError when the factory cannot be built over them, or makes an index that cannot filter.
    """
    faiss.omp_set_num_threads(1)
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
        # Some kinds take no selector (IndexPQ): better refused here than at the first filtered request.
        nothing = faiss.IDSelectorRange(0, 0)
        index.search(vectors[:1], 1, params=_parameters(index, {}, nothing, breadth=1))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"factory {factory!r} over {vectors.shape[0]} x {vectors.shape[1]} vectors: {reason}"
        ) from None
    return index


def index_bytes(index: Any) -> memoryview:
    """The serialized index. In memory, so that writing it meets disk errors in Python, where they have an errno."""
    serialized: npt.NDArray[np.uint8] = faiss.serialize_index(index)
    return serialized.data


def read_index(path: Path) -> Any:
    return faiss.read_index(str(path))


def exact_search(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Rows]:
    """Best `k` of the rows for each query: (scores, rows), both [n, min(k, rows)], best first. Brute force."""
    faiss.omp_set_num_threads(1)
    scores, rows = faiss.knn(
        np.ascontiguousarray(queries), vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return scores, rows


class SearchIndex:
    """A faiss index, its search parameters, and the vectors it was derived from.

    `index` has rows 0..n-1 in the order of `vectors`, float32 [n, d] at the served dimension, which are the ground
    truth for exact scans. `parameters`: `nprobe`, `efSearch`, `k_factor`; what the index does not know is not used.
    """

    def __init__(self, index: Any, vectors: Vectors, parameters: Mapping[str, float]) -> None:
        if index.d != vectors.shape[1] or index.ntotal != len(vectors):
            raise ValueError(
                f"the index holds {index.ntotal} x {index.d} vectors, expected {len(vectors)} x {vectors.shape[1]}"
            )
        self._index = index
        self._vectors = vectors
        self._parameters = dict(parameters)

    def search(
        self, queries: Vectors, k: int, allowed: Mask | None = None, *, repair: bool = True
    ) -> tuple[list[Vectors], list[Rows]]:
        """For each float32 [n, d] query the min(k, allowed rows) best: (scores, rows) per query, best first.

        Equal scores come in row order. `allowed` is a mask over all rows; None allows every row. Without `repair` an
        answer is what the index itself found, perhaps fewer: for judging the index.
        """
        allowed_count = len(self._vectors) if allowed is None else int(np.count_nonzero(allowed))
        wanted = min(k, allowed_count)
        if wanted == 0:
            return [np.empty(0, np.float32)] * len(queries), [np.empty(0, np.int64)] * len(queries)
        if allowed is not None and allowed_count <= EXACT_SCAN_SHARE * len(self._vectors):
            return self._scan(queries, wanted, allowed)
        scores, rows = self._ask_index(queries, wanted, allowed)
        incomplete = np.flatnonzero((rows < 0).any(axis=1))
        answers = [_ordered(s[r >= 0], r[r >= 0]) for s, r in zip(scores, rows, strict=True)]
        if repair and incomplete.size:
            repaired = self._scan(queries[incomplete], wanted, allowed)
            for query, answer in zip(incomplete, zip(*repaired, strict=True), strict=True):
                answers[query] = answer
        return [s for s, _ in answers], [r for _, r in answers]

    def _ask_index(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[Vectors, Rows]:
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = (
            None if bits is None or allowed is None else faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bits))
        )
        breadth = 1 if selector is None else FILTERED_BREADTH
        scores, rows = self._index.search(
            queries, k, params=_parameters(self._index, self._parameters, selector, breadth)
        )
        if allowed is not None and not allowed[rows[rows >= 0]].all():
            raise FilterViolated(f"{type(self._index).__name__} returned a row that the filter excludes")
        return scores, rows

    def _scan(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[list[Vectors], list[Rows]]:
        candidates = np.arange(len(self._vectors)) if allowed is None else np.flatnonzero(allowed)
        scores, positions = exact_search(queries, np.ascontiguousarray(self._vectors[candidates]), k)
        answers = [_ordered(s, candidates[p]) for s, p in zip(scores, positions, strict=True)]
        return [s for s, _ in answers], [r for _, r in answers]


def _ordered(scores: Vectors, rows: Rows) -> tuple[Vectors, Rows]:
    """Best first, equal scores in row order, so that the same question has one answer."""
    order = np.lexsort((rows, -scores))
    return scores[order], rows[order]


def _parameters(index: Any, values: Mapping[str, float], selector: Any, breadth: int) -> Any:
    """Search parameters of exactly the type that `index` reads, the selector at the innermost level that filters."""
    index = faiss.downcast_index(index)
    chosen: dict[str, Any] = {} if selector is None else {"sel": selector}
    match index:
        case faiss.IndexPreTransform():
            return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, values, selector, breadth))
        case faiss.IndexRefine():
            base = _parameters(index.base_index, values, selector, breadth)
            return faiss.IndexRefineSearchParameters(
                k_factor=values.get("k_factor", 1) * breadth, base_index_params=base
            )
        case faiss.IndexIVF():
            nprobe = min(int(values.get("nprobe", index.nprobe)) * breadth, index.nlist)
            return faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        case faiss.IndexHNSW():
            return faiss.SearchParametersHNSW(efSearch=int(values.get("efSearch", 16)) * breadth, **chosen)
        case _:
            return faiss.SearchParameters(**chosen)

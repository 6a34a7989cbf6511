"""Which faiss index to derive from the vectors, and how hard it must search to find what exact search finds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval_core.errors import BadArguments
from retrieval_core.generation.search import SearchIndex, build_index, exact_search
from retrieval_core.log import get_logger
from retrieval_indexer.checks import sample_rows

log = get_logger(__name__)

Vectors = npt.NDArray[np.float32]

AUTO = "auto"
FLAT = "Flat"
# Flat search is linear in rows x width: 100,000 x 512 with k 2000 took 17.8 ms on one thread (faiss 1.15.1), so this
# size takes about 50 ms. A slower answer is worth an approximate index; a faster one is worth being exact, needing no
# training, and filtering without loss.
AUTO_FLAT_COMPONENTS = 3 * 100_000 * 512
# What an approximate index must find of the exact top servedK before searching harder stops. Gut feeling: the loss
# stays below what an evaluation of a few thousand members can see.
TARGET_RECALL = 0.98
# A refined index re-ranks this many times k candidates: recall@2000 needed 1.5 to 2 with 4-bit PQ.
REFINE_FACTOR = 2.0
# Queries whose times give a p50; odd, so that the median is one of them. One by one they took 0.7 s where the ground
# truth of the recall sample, 512 in one batch, took 2.0 s (Flat, 100,000 x 512, k 2000, one thread).
TIMED_QUERIES = 31


@dataclass(frozen=True)
class BuiltIndex:
    factory: str
    index: Any
    parameters: dict[str, float]
    recall: float | None
    """Mean share of the exact top k found for the queries; None when there was no usable query."""
    p50_ms: float | None = None
    """Median time of one query in milliseconds; None when it was not measured."""


@dataclass(frozen=True)
class IndexChooser:
    """Builds the index that was asked for over `vectors`, float32 [n, d] and finite, to serve the top `k`.

    `members` gives sampled member vectors, float32 [q, d], perhaps none: what an approximate index is tuned and judged
    with, and called only for one. `clock` returns seconds.
    """

    vectors: Vectors
    k: int
    members: Callable[[], Vectors]
    clock: Callable[[], float] = time.perf_counter

    def choose(self, requested: str, latency_target_ms: int | None) -> BuiltIndex:
        """The requested factory; for `auto`, Flat while it is fast enough.

        Without a target its size decides, and the same corpus has the same index everywhere. With one, its measured
        p50 on this machine does: near the target, two builds may choose differently. The choice is published with
        the manifest and with nothing before it, so a finished build keeps its own and an interrupted one is free.

        Raises BadArguments like `derive_index`.
        """
        if latency_target_ms is None:
            return self._derive(resolve_factory(requested, *self.vectors.shape))
        if requested != AUTO:
            return self._timed(requested)
        flat = self._timed(FLAT)
        assert flat.p50_ms is not None  # there is no generation without an item to ask
        if flat.p50_ms <= latency_target_ms:
            return flat
        approximate = self._timed(approximate_factory(len(self.vectors)))
        # Searching hard enough to find what Flat finds can take longer than Flat; nobody to judge it by: not better.
        chosen = approximate if approximate.p50_ms is not None and approximate.p50_ms < flat.p50_ms else flat
        log.info(
            "Flat misses the latency target",
            target_ms=latency_target_ms,
            flat_p50_ms=flat.p50_ms,
            approximate_p50_ms=approximate.p50_ms,
            chosen=chosen.factory,
        )
        return chosen

    def _derive(self, factory: str) -> BuiltIndex:
        return derive_index(self.vectors, factory, self._queries(factory), self.k)

    def _timed(self, factory: str) -> BuiltIndex:
        built = self._derive(factory)
        index = SearchIndex(built.index, self.vectors, built.parameters)
        return replace(built, p50_ms=_p50_ms(index, self._queries(factory), self.k, self.clock))

    def _queries(self, factory: str) -> Vectors:
        """Sampled members; Flat is exact and equally fast whatever is asked, and items need no encoding."""
        return self.vectors[sample_rows(len(self.vectors))] if factory == FLAT else self.members()


def approximate_factory(count: int) -> str:
    """What `auto` means for `count` vectors when Flat is too slow."""
    # The usual 4 sqrt(n) lists, as a power of two: about 150 training vectors per list at 10^6 rows.
    return f"IVF{min(count, 2 ** round(math.log2(4 * math.sqrt(count))))},Flat"


def resolve_factory(requested: str, count: int, dimension: int) -> str:
    """The factory string for `count` vectors of `dimension`; anything but `auto` is taken as it is."""
    if requested != AUTO:
        return requested
    return FLAT if count * dimension <= AUTO_FLAT_COMPONENTS else approximate_factory(count)


def possible_factories(requested: str, count: int, dimension: int, latency_target_ms: int | None) -> set[str]:
    """The factory strings that `IndexChooser.choose` may have resolved `requested` to."""
    if requested == AUTO and latency_target_ms is not None:
        return {FLAT, approximate_factory(count)}
    return {resolve_factory(requested, count, dimension)}


def derive_index(vectors: Vectors, factory: str, queries: Vectors, k: int) -> BuiltIndex:
    """Build the index and raise its search effort, doubling, until it reaches TARGET_RECALL; else the best one stands.

    `vectors` are float32 [n, d] and finite; `queries` float32 [q, d], what recall is measured with, may be empty;
    `k` is the k that will be served: an index with recall@10 0.97 had recall@2000 0.62.

    Raises BadArguments when faiss cannot build this factory over these vectors, or cannot filter with it.
    """
    try:
        index = build_index(vectors, factory)
    except ValueError as error:
        raise BadArguments(f"--factory: {error}; use Flat or auto, or a factory that fits the corpus") from None
    if not len(queries):
        return BuiltIndex(factory, index, parameters=next(_efforts(factory, k)), recall=None)
    truth = [set(rows.tolist()) for rows in exact_search(queries, vectors, k)[1]]
    tried: list[tuple[float, dict[str, float]]] = []
    for parameters in _efforts(factory, k):
        recall = _recall(SearchIndex(index, vectors, parameters), queries, k, truth)
        tried.append((recall, parameters))
        if recall >= TARGET_RECALL:
            break
    # Not the last one: a refined index that probes more lists gives its refinement worse candidates.
    recall, parameters = max(tried, key=itemgetter(0))
    return BuiltIndex(factory, index, parameters, recall)


def _efforts(factory: str, k: int) -> Iterator[dict[str, float]]:
    """Search parameters from cheap to thorough. A flat index has none."""
    fixed = {"k_factor": REFINE_FACTOR} if ("Refine" in factory or "RFlat" in factory) else {}
    lists = _inverted_lists(factory)
    if lists:
        yield from ({**fixed, "nprobe": float(2**power)} for power in range(math.ceil(math.log2(lists)) + 1))
    elif "HNSW" in factory:
        # The candidate list must hold k entries to return k.
        yield from ({**fixed, "efSearch": float(k * 2**power)} for power in range(4))
    else:
        yield fixed


def _inverted_lists(factory: str) -> int:
    """The N of IVFN in a factory string; 0 without one."""
    for part in factory.split(","):
        digits = part.removeprefix("IVF").split("_")[0].split("(")[0]
        if part.startswith("IVF") and digits.isdecimal():
            return int(digits)
    return 0


def _recall(index: SearchIndex, queries: Vectors, k: int, truth: list[set[int]]) -> float:
    _, found = index.search(queries, k, repair=False)
    return float(np.mean([len(t.intersection(f.tolist())) / len(t) for t, f in zip(truth, found, strict=True)]))


def _p50_ms(index: SearchIndex, queries: Vectors, k: int, clock: Callable[[], float]) -> float | None:
    """Median time of one query, one at a time on one thread; None without queries."""
    if not len(queries):
        return None
    index.search(queries[:1], k)  # the first one brings pages in
    times_ms = []
    for query in queries[:TIMED_QUERIES]:
        started = clock()
        index.search(query[np.newaxis], k)
        times_ms.append((clock() - started) * 1000)
    return round(float(np.median(times_ms)), 3)

"""Which faiss index to derive from the vectors, and how hard it must search to find what exact search finds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval_core.generation.search import SearchIndex, build_index, exact_search

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


@dataclass(frozen=True)
class BuiltIndex:
    index: Any
    parameters: dict[str, float]
    recall: float | None
    """Mean share of the exact top k found for the queries; None when there was no usable query."""


def resolve_factory(requested: str, count: int, dimension: int) -> str:
    """The factory string for `count` vectors of `dimension`; anything but `auto` is taken as it is."""
    if requested != AUTO:
        return requested
    if count * dimension <= AUTO_FLAT_COMPONENTS:
        return FLAT
    # The usual 4 sqrt(n) lists, as a power of two: about 150 training vectors per list at 10^6 rows.
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},Flat"


def derive_index(vectors: Vectors, factory: str, queries: Vectors, k: int) -> BuiltIndex:
    """Build the index and raise its search effort, doubling, until it reaches TARGET_RECALL or cannot do more.

    `vectors` are float32 [n, d] and finite; `queries` float32 [q, d], what recall is measured with, may be empty;
    `k` is the k that will be served: an index with recall@10 0.97 had recall@2000 0.62.

    Raises ValueError when faiss cannot build this factory over these vectors, or cannot filter with it.
    """
    index = build_index(vectors, factory)
    best: tuple[dict[str, float], float | None] = ({}, None)
    truth = [set(rows.tolist()) for rows in exact_search(queries, vectors, k)[1]] if len(queries) else []
    for parameters in _efforts(factory, k):
        recall = _recall(SearchIndex(index, vectors, parameters), queries, k, truth)
        best = (parameters, recall)
        if recall is None or recall >= TARGET_RECALL:
            break
    return BuiltIndex(index, *best)


def _efforts(factory: str, k: int) -> Iterator[dict[str, float]]:
    """Search parameters from cheap to thorough. A flat index has none."""
    fixed = {"k_factor": REFINE_FACTOR} if ("Refine" in factory or "RFlat" in factory) else {}
    lists = _inverted_lists(factory)
    if lists:
        yield from ({**fixed, "nprobe": float(2**power)} for power in range(round(math.log2(lists)) + 1))
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


def _recall(index: SearchIndex, queries: Vectors, k: int, truth: list[set[int]]) -> float | None:
    if not truth:
        return None
    _, found = index.search(queries, k, repair=False)
    return float(np.mean([len(t.intersection(f.tolist())) / len(t) for t, f in zip(truth, found, strict=True)]))

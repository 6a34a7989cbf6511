"""Numbers that say whether a generation is sound, for the integrity gates of a refresh."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval_core.generation import Checks
from retrieval_core.generation.search import SearchIndex

Vectors = npt.NDArray[np.float32]
Strings = npt.NDArray[np.str_]

# Enough to see a loss of one percent of answers with certainty (1 - 0.99^512 = 0.994), and a second of work.
SAMPLE = 512


def sample_rows(count: int, size: int = SAMPLE) -> npt.NDArray[np.int64]:
    """At most `size` distinct rows out of `count`, sorted; the same ones for the same count."""
    return np.sort(np.random.default_rng(count).permutation(count)[:size])


def finite_rows(vectors: Vectors) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(vectors).all(axis=1))


def max_norm_error(vectors: Vectors) -> float | None:
    """Largest |length - 1| of float32 [n, d]; None when a vector is not finite."""
    if not finite_rows(vectors).all():
        return None
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return float(np.abs(lengths - 1).max(initial=0.0))


def self_hit(index: SearchIndex, vectors: Vectors, prompt_hashes: Strings) -> float:
    """Share of sampled items whose own vector finds, first, an item with the same prompt.

    The prompt and not the id, because items with one prompt have one vector; and not the score, because in a collapsed
    generation every item would find itself by score.
    """
    rows = sample_rows(len(vectors))
    _, found = index.search(np.asarray(vectors[rows]), 1)
    hits = [bool(prompt_hashes[first[0]] == prompt_hashes[row]) for row, first in zip(rows, found, strict=True)]
    return float(np.mean(hits))


def check_generation(
    *,
    vectors: Vectors,
    served: Vectors,
    member_vectors: Vectors,
    prompt_hashes: Strings,
    index: Any,
    parameters: dict[str, float],
    recall: float | None,
    existing: int,
) -> Checks:
    """All checks of a generation; `existing` is how many items of the dataset existed at asOf."""
    finite = finite_rows(vectors)
    sound = bool(finite.all() and finite_rows(member_vectors).all())
    errors = [max_norm_error(vectors), max_norm_error(member_vectors)]
    return Checks(
        finite=sound,
        max_norm_error=None if None in errors else max(error for error in errors if error is not None),
        self_hit=self_hit(SearchIndex(index, served, parameters), served, prompt_hashes) if sound else None,
        recall_at_served_k=recall if sound else None,
        coverage=float(np.count_nonzero(finite)) / existing,
    )

"""Members of a build: the vectors that are stored for retrieval by id, and the sample an index is judged with.

Whoever asks the index will be a member. Items are no stand-in for them: an item's neighbours lie in its own inverted
list, so an index that finds 0.98 for items may find 0.73 for members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from retrieval_core.dataset import Dataset
from retrieval_core.encoding import Encoder
from retrieval_indexer.corpus import Corpus, Rows
from retrieval_indexer.encode import PROMPTS_PER_CALL, Progress

Vectors = npt.NDArray[np.float32]


def joined_members(dataset: Dataset, as_of: int) -> Rows:
    """Rows of the members that had joined at or before `as_of`, ascending; all when the dataset does not say when."""
    joined = dataset.member_joined_at
    rows: Rows = np.arange(len(dataset.member_ids)) if joined is None else np.flatnonzero(joined <= as_of)
    return rows


def sample_members(dataset: Dataset, as_of: int, count: int, purpose: str) -> Rows:
    """Rows of at most `count` members that had joined by `as_of`, by a stable hash of their ids.

    Another `purpose` draws another sample. A refresh asks nearly the same members as the build before it.
    """
    ids = dataset.member_ids
    ordered = sorted(
        joined_members(dataset, as_of).tolist(),
        key=lambda row: hashlib.sha256(f"{purpose}/{ids[row]}".encode()).digest(),
    )
    return np.asarray(ordered[:count], dtype=np.int64)


class MemberVectors:
    """Members of a corpus that had joined by its asOf, encoded as of then, each at most once.

    `encoder` is called only when there is something to encode.
    """

    def __init__(self, corpus: Corpus, encoder: Callable[[], Encoder], *, stored: bool, progress: Progress) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._progress = progress
        self.stored = stored
        """Whether all of them are wanted, and not just a sample."""

    @cached_property
    def rows(self) -> Rows:
        """Dataset rows of the stored members, ascending. int64 [m], empty when none are stored."""
        return joined_members(self._corpus.dataset, self._corpus.as_of) if self.stored else np.empty(0, np.int64)

    @cached_property
    def vectors(self) -> Vectors:
        """Full-width vectors of `rows`, float32 [m, D]."""
        return self._encode(self.rows, self._progress)

    def sample(self, count: int) -> Vectors:
        """Full-width vectors of at most `count` sampled members, float32 [q, D]; empty when nobody had joined."""
        rows = sample_members(self._corpus.dataset, self._corpus.as_of, count, "index")
        return self.vectors[np.searchsorted(self.rows, rows)] if self.stored else self._encode(rows, lambda _: None)

    def _encode(self, rows: Rows, progress: Progress) -> Vectors:
        corpus = self._corpus
        history = corpus.bundle.prompts.member.history
        max_history = history.max_items if history is not None else 0
        vectors = np.empty((len(rows), corpus.bundle.manifest.embedding.dimension), dtype=np.float32)
        for start in range(0, len(rows), PROMPTS_PER_CALL):
            chunk = rows[start : start + PROMPTS_PER_CALL]
            features = [corpus.view.member_features(int(row), corpus.as_of, max_history) for row in chunk]
            vectors[start : start + len(chunk)] = self._encoder().encode_members(features)
            progress(len(chunk))
        return vectors

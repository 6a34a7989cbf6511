"""What scores the corpus for each member: a bundle with its generation, or a baseline.

A scorer yields, for members in order of evaluation time, one float array [n] over the corpus. It knows nothing of
positives, pools or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import Diverged
from retrieval_core.generation import Generation
from retrieval_indexer.encode import PROMPTS_PER_CALL
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet
from retrieval_indexer.evaluation.item_variants import ItemVariants

Scores = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.float32]
Progress = Callable[[int], None]

# Members scored by one matrix product: 256 x 100,000 scores are 100 MB.
MEMBERS_PER_PRODUCT = 256


class Scorer(Protocol):
    def scores(self, evaluation: EvaluationSet) -> Iterator[Scores]:
        """One array [n] per member of the set, in its order; an array may be reused for the next member."""
        ...


class RandomScorer:
    """Every item the same score: with ties counted as expected, exactly the random level."""

    def scores(self, evaluation: EvaluationSet) -> Iterator[Scores]:
        return repeat(np.zeros(len(evaluation.corpus)), len(evaluation))


class PopularityScorer:
    """Windowed engagements as of the member's time."""

    def scores(self, evaluation: EvaluationSet) -> Iterator[Scores]:
        time, popularity = None, np.empty(0)
        for index in range(len(evaluation)):
            if evaluation.times[index] != time:  # with a global split it is one time for all
                time = evaluation.times[index]
                popularity = evaluation.popularity(index).astype(np.float64)
            yield popularity


class TrainedPopularityScorer:
    """Engagements of the whole training part whatever their time, the same for every member.

    With a perMember split the training parts of others reach past a member's own time: this baseline knows that future,
    as the weights do and windowed popularity does not.
    """

    def scores(self, evaluation: EvaluationSet) -> Iterator[Scores]:
        events = evaluation.dataset.events
        items = events.item[events.engaged & ~events.is_test]
        counts = np.bincount(items, minlength=len(evaluation.dataset.item_ids))[evaluation.corpus]
        return repeat(counts.astype(np.float64), len(evaluation))


# Scores that are the same for all members, or nearly so: what a model must beat before it may be called personal.
# The strongest of the kind, `notPersonal`, needs a model: `StackScorer.paired_scores`.
BASELINES: dict[str, Scorer] = {
    "popularity": PopularityScorer(),
    "popularityTrained": TrainedPopularityScorer(),
    "random": RandomScorer(),
}


@dataclass(frozen=True)
class Stack:
    """A bundle and an evaluation generation made by it."""

    bundle: Bundle
    generation: Generation

    @classmethod
    def open(cls, bundle_uri: str, generation_uri: str) -> Stack:
        """Open both; BadInput when one is damaged or they do not belong together."""
        bundle = Bundle.open(bundle_uri)
        return cls(bundle, Generation.open(generation_uri, expected_bundle_id=bundle.id))


class StackScorer:
    """Cosine of member and item vectors at the generation's served dimension, by the vectors and not by the index.

    `member_vectors` float32 [m, d] are there once `scores` has begun; not-a-number when the model diverged.
    """

    def __init__(self, stack: Stack, progress: Progress = lambda _: None, device: str = "cpu") -> None:
        self.stack = stack
        self._progress = progress
        self._device = device
        self.member_vectors: Vectors = np.empty((0, stack.generation.dimension), np.float32)
        self.variants_encoded = 0

    def scores(self, evaluation: EvaluationSet) -> Iterator[Scores]:
        return (own for own, _ in self.paired_scores(evaluation))

    def paired_scores(self, evaluation: EvaluationSet) -> Iterator[tuple[Scores, Scores]]:
        """Per member its scores, and those of the mean member: what the item vectors tell without knowing who asks.

        The mean member is the direction of the mean of all evaluated members' vectors (each is 1/m of it). With a
        perMember split it meets the items as of each member's time, so its scores differ between members all the same.
        """
        encoder = Encoder(self.stack.bundle, device=self._device)
        try:
            self.member_vectors = self._encode_members(evaluation, encoder)
            yield from self._paired_scores(evaluation, encoder)
        except Diverged:
            # Not a failure of the evaluation but its finding; the remaining members stay without a finite score.
            self.member_vectors = np.full((len(evaluation), self.stack.generation.dimension), np.nan, np.float32)

    def _paired_scores(self, evaluation: EvaluationSet, encoder: Encoder) -> Iterator[tuple[Scores, Scores]]:
        mean_member = mean_direction(self.member_vectors)
        if evaluation.dataset.split.mode == "perMember":
            variants = ItemVariants(evaluation, self.stack.generation, encoder)
            for index, items in enumerate(variants.at_times(evaluation.times)):
                own, shared = np.stack([self.member_vectors[index], mean_member]) @ items.T
                yield own, shared
            self.variants_encoded = variants.encoded
            return
        items = self.stack.generation.served_vectors
        shared = items @ mean_member
        for start in range(0, len(evaluation), MEMBERS_PER_PRODUCT):
            for own in self.member_vectors[start : start + MEMBERS_PER_PRODUCT] @ items.T:
                yield own, shared

    def _encode_members(self, evaluation: EvaluationSet, encoder: Encoder) -> Vectors:
        history = self.stack.bundle.prompts.member.history
        max_history = history.max_items if history is not None else 0
        parts = []
        for start in range(0, len(evaluation), PROMPTS_PER_CALL):
            block = slice(start, start + PROMPTS_PER_CALL)
            features = [
                evaluation.view.member_features(int(member), int(time), max_history)
                for member, time in zip(evaluation.members[block], evaluation.times[block], strict=True)
            ]
            parts.append(encoder.encode_members(features))
            self._progress(len(features))
        return truncate(np.concatenate(parts), self.stack.generation.dimension)


def mean_direction(vectors: Vectors) -> Vectors:
    """Unit vector along the mean of [m, d], float32 [d]; the mean itself where it has no direction (zero or NaN)."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(mean)
    return np.asarray(mean / length if length > 0 else mean, dtype=np.float32)

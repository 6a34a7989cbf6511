"""Which examples and hard negatives make up each batch: a pure function of (seed, position), so resuming is exact.

The stream of examples is one permutation of all examples after another. A position counts examples of the global batch
from the start of the training; nothing else needs to be remembered.

Hard negatives of an example are drawn from the impressions without engagement nearest in time to it, before or after
(all of the training part), and rendered as of the example's time; items that did not exist then are left out. Where
fewer than the wanted number exist, popular items fill up: draws from the positives' own frequencies, of items the
member did not engage with. Missing ones after that are -1 and masked.

Legend: B examples of a batch, H hard negatives per example, K window, F filling draws, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_trainer.examples import TrainingExamples

# Impressions around an example that may become its hard negatives. About one page of a feed before and after; gut
# feeling. A window, not the whole history: what was shown years apart says little about the choice made now.
WINDOW = 20
# Draws tried for each missing hard negative. A draw is refused when the member engaged with it: after 8, rare.
FILLING_DRAWS = 8


@dataclass(frozen=True)
class Batch:
    """member, item int32[B], time int64[B]; hard int32[B, H] with -1 for a missing one."""

    member: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    hard: NDArray[np.int32]

    def rows(self, start: int, stop: int) -> Batch:
        """The part of the batch that one rank encodes."""
        part = slice(start, stop)
        return Batch(self.member[part], self.item[part], self.time[part], self.hard[part])


@dataclass(frozen=True)
class Window:
    """The candidates of each example: rows start:start + size (int64[B]) of `TrainingExamples.impressed_item`."""

    start: NDArray[np.int64]
    size: NDArray[np.int64]


def impression_window(examples: TrainingExamples, rows: NDArray[np.int64]) -> Window:
    """The at most WINDOW impressions of the member that are nearest in rank to the example's time."""
    member, time = examples.member[rows], examples.time[rows]
    first, end = examples.impressed_from[member], examples.impressed_from[member + 1]
    place = np.fromiter(
        (
            low + np.searchsorted(examples.impressed_time[low:high], moment)
            for low, high, moment in zip(first, end, time, strict=True)
        ),
        dtype=np.int64,
        count=len(rows),
    )
    start = np.clip(place - WINDOW // 2, first, np.maximum(first, end - WINDOW))
    return Window(start, np.minimum(end - start, WINDOW))


class BatchSampler:
    """Batches of examples with their hard negatives, by position in the stream."""

    def __init__(self, examples: TrainingExamples, *, hard_negatives: int, seed: int) -> None:
        self.examples = examples
        self._hard_negatives = hard_negatives
        self._seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)
        counts = np.bincount(examples.item, minlength=examples.item_count)
        self._cumulative_frequency = np.cumsum(counts) / len(examples)

    def batch(self, position: int, size: int) -> Batch:
        """The examples at position ... position + size of the stream; a batch may reach into the next permutation."""
        stream = np.arange(position, position + size)
        rows = np.concatenate(
            [self._epoch_order(epoch)[part % len(self.examples)] for epoch, part in self._by_epoch(stream)]
        )
        random = np.random.default_rng([self._seed, 1, position])
        hard = self._draw_hard_negatives(rows, random)
        return Batch(self.examples.member[rows], self.examples.item[rows], self.examples.time[rows], hard)

    def _by_epoch(self, stream: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        epochs = stream // len(self.examples)
        return [(int(epoch), stream[epochs == epoch]) for epoch in np.unique(epochs)]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self.examples))
            self._epoch = epoch
        return self._permutation

    def _draw_hard_negatives(self, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int32]:
        """[B, H]: valid window candidates in random order, then valid filling draws, then -1."""
        wanted = self._hard_negatives
        if wanted == 0:
            return np.empty((len(rows), 0), dtype=np.int32)
        window = self._window_candidates(rows)
        filling = np.searchsorted(
            self._cumulative_frequency, random.random((len(rows), wanted * FILLING_DRAWS)), side="right"
        ).astype(np.int32)
        candidates = np.concatenate([window, filling], axis=1)
        priority = np.concatenate([random.random(window.shape), 1.0 + np.indices(filling.shape)[1]], axis=1)
        priority[~self._is_valid(rows, candidates)] = np.inf
        chosen = np.argsort(priority, axis=1, kind="stable")[:, :wanted]
        missing = np.isinf(np.take_along_axis(priority, chosen, axis=1))
        return np.where(missing, -1, np.take_along_axis(candidates, chosen, axis=1)).astype(np.int32)

    def _window_candidates(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        window = impression_window(self.examples, rows)
        offsets = np.arange(WINDOW)
        if len(self.examples.impressed_item) == 0:
            return np.full((len(rows), WINDOW), -1, dtype=np.int32)
        places = np.minimum(window.start[:, None] + offsets, len(self.examples.impressed_item) - 1)
        return np.where(offsets < window.size[:, None], self.examples.impressed_item[places], -1).astype(np.int32)

    def _is_valid(self, rows: NDArray[np.int64], candidates: NDArray[np.int32]) -> NDArray[np.bool_]:
        member, time = self.examples.member[rows][:, None], self.examples.time[rows][:, None]
        items = np.maximum(candidates, 0)
        engaged = self.examples.has_engaged(member, items)
        return np.asarray((candidates >= 0) & ~engaged & self.examples.exists(items, time))

"""How often an item is sampled as an in-batch column (p) and as a hard negative (q): what logQ corrects for.

p is exact: examples come from permutations, so an item's share of the examples is its probability. q is measured: the
sampler itself draws hard negatives for many examples, so windows, filling and refusals are all in the numbers. q is the
marginal over examples, not the probability given the member: both p and q are then shares of all draws, on one scale,
and a hard negative counts like an in-batch negative that is sampled as rarely (see bias.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_trainer.sampling import BatchSampler

# Examples whose hard negatives are drawn to measure q; one epoch when there are fewer. At 50 000 examples x 2 draws an
# item drawn 100 times is known to 10 %, which moves a logit by 0.1.
MEASURED_EXAMPLES = 50_000
# Position of the measuring draws: far from any training's, so that no batch is measured by its own draws.
MEASURING_POSITION = 1 << 62


@dataclass(frozen=True)
class Proposals:
    """log_p, log_q float32[I]: natural logs of shares that sum to one; an item never seen counts half a draw."""

    log_p: NDArray[np.float32]
    log_q: NDArray[np.float32]


def measure_proposals(sampler: BatchSampler) -> Proposals:
    """Count positives exactly and hard negatives by drawing them. Seeded: the same on every rank and every resume."""
    examples = sampler.examples
    positives = np.bincount(examples.item, minlength=examples.item_count)
    measured = sampler.batch(MEASURING_POSITION, min(len(examples), MEASURED_EXAMPLES)).hard
    hard = np.bincount(measured[measured >= 0], minlength=examples.item_count)
    return Proposals(_log_share(positives), _log_share(hard))


def _log_share(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(np.log(np.maximum(counts, 0.5) / max(counts.sum(), 1)), dtype=np.float32)

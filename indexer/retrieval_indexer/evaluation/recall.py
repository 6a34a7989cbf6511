"""Recall and hit rate from scores: pure functions on arrays, no files, no models.

Ties count as their expectation when equal scores are ordered at random, so constant scores give exactly the random
level and never 1.0. With G scores above a positive's and T others equal to it, the positive is among the first k with
probability clip((k - G) / (T + 1), 0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

Scores = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]

# Cosines closer than this are equal: the same vector scored at two places of a matrix product differs by up to 1e-7.
TIE_TOLERANCE = 1e-6
# A metric at k >= this share of its candidates says little about ranking: reported, never gated.
MAX_GATED_SHARE = 0.2


@dataclass(frozen=True)
class Ranks:
    """For each positive: how many candidates score above it, and how many others score the same."""

    above: Counts
    tied: Counts


def ranks(scores: Scores, positives: npt.NDArray[np.integer]) -> Ranks:
    """Ranks of `positives` (indices [p]) among `scores` [n]; -inf marks a candidate that is left out."""
    ordered = np.sort(scores)
    own = scores[positives].astype(np.float64)
    below = np.searchsorted(ordered, own - TIE_TOLERANCE, side="left")
    up_to = np.searchsorted(ordered, own + TIE_TOLERANCE, side="right")
    return Ranks(above=(len(scores) - up_to).astype(np.int64), tied=(up_to - below - 1).astype(np.int64))


def inclusion(found: Ranks, k: int) -> npt.NDArray[np.float64]:
    """Probability of each positive to be among the first k, [p]."""
    return np.clip((k - found.above) / (found.tied + 1), 0.0, 1.0)


def corpus_recall(found: Ranks, k: int) -> float:
    """Expected |top-k and P| / min(k, |P|)."""
    return float(inclusion(found, k).sum() / min(k, len(found.above)))


def hit_rate(found: Ranks, k: int) -> float:
    """Expected share of orderings with at least one positive among the first k.

    Above the cut everything is certain. At the cut one group of equals is split: of its S members, m positive, r are
    drawn, and none is positive with hypergeometric probability.
    """
    if (found.above + found.tied < k).any():
        return 1.0
    cut = found.above < k
    if not cut.any():
        return 0.0
    group, drawn = int(found.tied[cut][0]) + 1, k - int(found.above[cut][0])
    return float(1 - hypergeom.pmf(0, group, int(np.count_nonzero(cut)), drawn))


def pool_recall(positive: Scores, negatives: Scores, k: int) -> npt.NDArray[np.float64]:
    """For pools of one positive [p] and its negatives [p, m]: probability that it is among the first k, [p]."""
    gap = negatives.astype(np.float64) - positive.astype(np.float64)[:, None]
    above = np.count_nonzero(gap > TIE_TOLERANCE, axis=1)
    tied = np.count_nonzero(np.abs(gap) <= TIE_TOLERANCE, axis=1)
    return inclusion(Ranks(above=above.astype(np.int64), tied=tied.astype(np.int64)), k)


def is_too_few_items(k: int, candidates: int) -> bool:
    return k >= MAX_GATED_SHARE * candidates

"""The oracle: how likely a member of the synthetic world is shown an item, and engages with it.

The generator samples from it and `retrieval-data oracle` ranks with it, so there is one definition of what a perfect
model would know. Times are days since the world began; K is the number of topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Adjusted until the oracle was clearly better than popularity, and popularity than chance. Recall@10 in pools of
# 1 + 142, default sizes, seed 0: oracle 0.87, popularity 0.27, chance 0.07; in popularity-matched pools 0.84 and 0.07.
RANKER_SHARPNESS = 5.0  # the feed's ranker: how strongly it prefers items of the member's topics
RECENCY_DAYS = 8.0  # exposure falls by e in this time
AFFINITY_WEIGHT = 5.0
QUALITY_WEIGHT = 0.4
ENGAGEMENT_BIAS = 3.2


@dataclass(frozen=True)
class Interests:
    """What members like, moving in a straight line from one mixture of topics to another."""

    before: Floats  # [M, K] unit rows, as are those of `after`
    after: Floats
    drift_from: Floats  # [M]
    drift_days: Floats  # [M], positive

    def at(self, members: Indices, day: float | Floats) -> Floats:
        """Unit vectors [n, K] of `members` [n] at `day` (one for all, or [n])."""
        moved = np.clip((day - self.drift_from[members]) / self.drift_days[members], 0, 1)[:, None]
        return unit(self.before[members] * (1 - moved) + self.after[members] * moved)


@dataclass(frozen=True)
class Appeal:
    """What makes items be shown and liked."""

    created: Floats  # [I]
    topics: Floats  # [I, K] unit rows
    quality: Floats  # [I] standard normal
    zipf: Floats  # [I] log of the Zipf weight: how often the feed considers the item while it is new

    def log_exposure(self, items: Indices, day: float | Floats) -> Floats:
        """Log of the weight with which the feed considers `items` at `day`; -inf before they exist."""
        age = day - self.created[items]
        return np.where(age >= 0, self.zipf[items] - age / RECENCY_DAYS, -np.inf)

    def affinity(self, interests: Floats, items: Indices) -> Floats:
        """Cosine [n, c] in [0, 1] of `interests` [n, K] with the topics of `items` [n, c]."""
        affinity: Floats = np.einsum("nk,nck->nc", interests, self.topics[items])
        return affinity

    def engagement_probability(self, affinity: Floats, items: Indices) -> Floats:
        """Probability that a member engages with a shown item; arrays of one shape."""
        logit = AFFINITY_WEIGHT * affinity + QUALITY_WEIGHT * self.quality[items] - ENGAGEMENT_BIAS
        probability: Floats = 1 / (1 + np.exp(-logit))
        return probability

    def log_positive(self, interests: Floats, items: Indices, day: Floats) -> Floats:
        """Log of the rate [n, c] at which a member engages with items, up to a constant per member and day.

        Considered (exposure) x chosen by the ranker (softmax of affinity) x engaged: what a perfect model ranks by.
        """
        affinity = self.affinity(interests, items)
        engaged = np.log(self.engagement_probability(affinity, items))
        score: Floats = self.log_exposure(items, day[:, None]) + RANKER_SHARPNESS * affinity + engaged
        return score


def unit(vectors: Floats) -> Floats:
    """Rows at length 1."""
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled

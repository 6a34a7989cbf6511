"""How many members a gate needs, and how often equal models would pass it. Normal approximation, pure functions."""

from __future__ import annotations

import math

from scipy.stats import norm

# "The n that would decide" decides with this probability if the observed mean and spread are the true ones.
POWER = 0.8


def pass_probability(
    *, members: int, spread: float, margin: float, confidence: float = 0.95, true_delta: float = 0.0
) -> float:
    """Probability that the lower bound of the mean difference ends at or above -margin.

    `spread`: standard deviation of a member's difference; 0 means that no member differs, where the exact bound
    -(1 - (1 - confidence)^(1/members)) decides.
    """
    if spread == 0:
        return float(1 - (1 - confidence) ** (1 / members) <= margin + true_delta)
    return float(norm.cdf(math.sqrt(members) * (true_delta + margin) / spread - norm.ppf(confidence)))


def members_to_decide(
    *, delta: float, spread: float, margin: float, confidence: float, power: float = POWER
) -> int | None:
    """Members needed to place the true difference on one side of -margin, when it and the spread are as observed.

    None when the observed difference is exactly -margin: no number of members would decide.
    """
    distance = abs(delta + margin)
    if distance == 0:
        return None
    # Solve confidence bound = margin for n; without spread the exact bound's rule of three decides.
    by_spread = ((norm.ppf(confidence) + norm.ppf(power)) * spread / distance) ** 2
    by_rule_of_three = math.log(1 - confidence) / math.log1p(-min(distance, 1 - 1e-12))
    return math.ceil(max(float(by_spread), by_rule_of_three))


def difference_spread(*, baseline: float, correlation: float) -> float:
    """Standard deviation of the difference of two equal models whose hits, each with mean `baseline`, correlate so."""
    return math.sqrt(2 * baseline * (1 - baseline) * (1 - correlation))

"""The power of a comparison gate: how likely is a pass, and how many members does it take?

The difference of two models on one member is in [-1, 1]; with one positive per member it is -1, 0 or 1, and its
variance is the discordant share d (minus delta squared). With n members and true difference delta the one-sided lower
bound at confidence c clears -m with probability about

    Phi((delta + m) * sqrt(n) / sqrt(d - delta^2) - z_c)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

_NORMAL = NormalDist()
# Used until a real evaluation shows it. Seen on toy models: 0.1 to 0.3. An assumption, and called one where shown.
ASSUMED_DISCORDANT_SHARE = 0.2
USUAL_POWER = 0.8


@dataclass(frozen=True)
class Power:
    """`pass_if_equal`: probability that an equal model passes. `members_needed`: for USUAL_POWER at no difference."""

    members: int
    margin: float
    discordant_share: float
    pass_if_equal: float
    members_needed: int


def gate_power(*, members: int, margin: float, confidence: float, discordant_share: float) -> Power:
    """The power at n members; a margin of 0 needs infinitely many, shown as 0 members_needed."""
    z = _NORMAL.inv_cdf(confidence)
    spread = sqrt(max(discordant_share, 1e-9))
    passing = _NORMAL.cdf(margin * sqrt(members) / spread - z)
    needed = ceil(((z + _NORMAL.inv_cdf(USUAL_POWER)) * spread / margin) ** 2) if margin > 0 else 0
    return Power(members, margin, discordant_share, passing, needed)
